"""The experiment: three kinds of thread pool, the same ORM jobs, and PostgreSQL's count of connections.

    python demo/experiment.py [--quick] [--no-gc] [--svg PATH] [--json PATH] [--readme PATH]

Without DATABASE_URL it starts a PostgreSQL of its own. Everything that it makes, it removes.
"""

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal asked for the end. Its number is the argument.

    A KeyboardInterrupt, because psycopg then cancels the query under way, so that the connection
    still serves the clean-up.
    """


def main() -> int:
    options = parse()
    for number in SIGNALS:
        signal.signal(number, stop)
    try:
        # Imported here, since a signal may arrive while Django loads.
        from lab import runner

        try:
            runner.run(
                quick=options.quick,
                collector=not options.no_gc,
                svg=options.svg,
                json=options.json,
                readme=options.readme,
            )
        except runner.FORESEEN as error:
            print(f"experiment: {error}", file=sys.stderr)
            return 1
    except Stopped as stopped:
        print("Stopped. Everything that the experiment started is gone.")
        return 128 + int(stopped.args[0])
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Count PostgreSQL's connections while three kinds of pool run the same ORM jobs.",
        epilog="With DATABASE_URL that server is used, in a database of the experiment's own. "
        "For some seconds the leaking ways may take all the connections that it has.",
    )
    parser.add_argument("--quick", action="store_true", help="10 pools and 10 callers")
    parser.add_argument("--no-gc", action="store_true", help="without the cyclic garbage collector")
    parser.add_argument(
        "--svg",
        type=Path,
        metavar="PATH",
        default=Path(__file__).with_name("experiment.svg"),
        help="where to draw the picture (default: beside this script)",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the numbers")
    parser.add_argument(
        "--readme", type=Path, metavar="PATH", help="a Markdown file whose table to write anew"
    )
    return parser.parse_args()


def stop(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:  # what follows is the clean-up: let it finish
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)


if __name__ == "__main__":
    sys.exit(main())
