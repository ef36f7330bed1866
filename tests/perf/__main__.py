"""Prepares what measuring needs with the system's python, then measures with that of the tests' environment."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

from perf.options import REPO, parser


def _prepared() -> bool:
    return all(importlib.util.find_spec(name) for name in ("pollux", "thrift"))


def main() -> int:
    arguments = parser().parse_args()
    if arguments.list:
        from perf.names import all_names

        print("\n".join(all_names()))
        return 0
    if _prepared():
        from perf.main import measure

        return measure(arguments)
    from allinone.errors import AllInOneError
    from allinone.progress import Progress
    from runner import requirements

    progress = Progress()
    logs = REPO / "build" / "test-logs"
    logs.mkdir(parents=True, exist_ok=True)
    command = ["-m", "perf", *sys.argv[1:]]
    try:
        python = requirements.prepare(REPO, logs, progress)
        if not arguments.build_dir:
            command += ["--build-dir", str(requirements.build(REPO, logs, progress))]
        if arguments.plot and subprocess.run([python, "-c", "import matplotlib"], capture_output=True).returncode:
            with progress.step("matplotlib", logs / "python.log"):
                subprocess.run([python, "-m", "pip", "install", "-q", "matplotlib==3.9.2"], check=True)
    except (AllInOneError, OSError, subprocess.CalledProcessError) as error:
        progress.plain(str(error))
        return 1
    os.execv(python, [str(python), *command])


if __name__ == "__main__":
    sys.exit(main())
