"""Command line of tests/run."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from allinone.errors import AllInOneError
from allinone.progress import Progress

from runner import report, requirements, suites

REPO = Path(__file__).resolve().parents[3]


def main() -> int:
    arguments = _parse()
    chosen = arguments.only or (suites.QUICK if arguments.quick else suites.ORDER)
    if arguments.list:
        for name in suites.ORDER:
            what = "" if suites.executable(REPO, name) else "  (nothing yet)"
            quick = "  quick" if name in suites.QUICK else ""
            print(f"{name}{quick}{what}")
        return 0
    level = "quick" if arguments.quick else "full" if arguments.full else "default"
    logs = REPO / "build" / "test-logs"
    logs.mkdir(parents=True, exist_ok=True)
    progress = Progress()
    outcomes: list[suites.Outcome] = []
    try:
        python = requirements.prepare(REPO, logs, progress)
        build = arguments.build_dir.resolve() if arguments.build_dir else requirements.build(REPO, logs, progress)
    except (AllInOneError, OSError) as error:
        progress.plain(str(error))
        outcomes.append(suites.Outcome.failure("preparation", str(error)))
    else:
        run = suites.Run(REPO, build, logs, python, level)
        for name in chosen:
            outcomes.append(suites.run(run, name, progress))
    return report.close(outcomes, progress)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/run",
        description="Install what testing needs, build Pollux, run its test suites.",
        epilog="Logs are in build/test-logs/. Exit status: 0 when tests ran and none failed.",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help=f"a few minutes: {', '.join(suites.QUICK)}")
    length.add_argument("--full", action="store_true", help="the long versions of all suites")
    parser.add_argument(
        "--only", action="append", choices=suites.ORDER, metavar="SUITE", help="this suite (repeatable)"
    )
    parser.add_argument("--build-dir", type=Path, help="test what this folder holds instead of building build/release")
    parser.add_argument("--list", action="store_true", help="list the suites and end")
    return parser.parse_args()


if __name__ == "__main__":
    # Suites must not wait for input, whatever the runner's own standard input is.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.exit(main())
