"""What `make` does, for machines without make: `python3 tools/project.py test`, and so on.

This file and `steps/pythons.py` must parse on an old Python (3.6), which has to say in one line
what to install instead of failing with a syntax error.
"""

import os
import sys

from steps import pythons


def main() -> int:
    python = pythons.find_python(pythons.SUPPORTED)
    if python is None:
        print("Python 3.11 or newer is missing: " + pythons.how_to_install(), file=sys.stderr)
        return 1
    if python != sys.executable:
        os.execv(python, [python, *sys.argv])
    from steps import targets  # an old Python cannot parse it

    return targets.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
