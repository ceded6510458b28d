"""Compare the executors with the alternatives, and write down what came of it.

python benchmarks/run.py [--quick] [--server NAME]... [--workload NAME]... [--rounds N]
python benchmarks/run.py --cpu | --pools | --processes | --cluster [--rounds N]
python benchmarks/run.py --page [--rounds N]
python benchmarks/run.py --profile CONTESTANT WORKLOAD [--server NAME]
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    # In the place of this folder: its modules are imported as the package's. `private_servers` and
    # `drawing` belong to the checkout and are not installed.
    sys.path[:1] = [str(ROOT), str(ROOT / "tools")]
    from benchmarks import project

    project.set_up()  # before the models are imported
    from benchmarks.command import main

    sys.exit(main(sys.argv[1:]))
