"""Finding and running suites. tests/README.md has what a suite is told and what it must leave behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from allinone.progress import Progress

# In the order in which they run: what fails fast comes first.
ORDER = ("unit", "python", "initiator", "guest", "crash", "fuzz", "perf-gate", "openstack", "hosts")
QUICK = ("unit", "python", "initiator", "guest")

_NOTHING_TO_RUN = 77
_LIMIT_S = {"quick": 15 * 60, "default": 40 * 60, "full": 12 * 3600}
_SHOWN_ON_FAILURE = 60
# Of why a test failed, at the end of the run.
_REASON_LINES, _REASON_WIDTH = 12, 200
# For a suite to end what it started, once it is told to stop.
_CLEANUP_S = 60


class _Failed(Exception):
    """Lets the progress line of a suite say that it failed."""


@dataclass(frozen=True)
class Run:
    """What all suites of one run share. `level` is quick, default or full."""

    repo: Path
    build: Path
    logs: Path
    python: Path
    level: str


@dataclass
class Outcome:
    """What a suite came to. `failures` names the tests that failed; lines below the first say why."""

    name: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    note: str = ""
    failures: list[str] = field(default_factory=list)

    @classmethod
    def failure(cls, name: str, what: str) -> Outcome:
        return cls(name, failed=1, failures=[what.splitlines()[-1] if what else name])


def executable(repo: Path, name: str) -> Path | None:
    path = repo / "tests" / name / "suite"
    return path if os.access(path, os.X_OK) else None


def run(run: Run, name: str, progress: Progress) -> Outcome:
    """Run suite `name` to its end and count its tests. On failure its log's end is shown."""
    program = executable(run.repo, name)
    if program is None:
        progress.say(f"       {name}: nothing yet")
        return Outcome(name, note="nothing yet")
    log = run.logs / f"{name}.log"
    results = run.logs / f"{name}.results"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir()
    started = time.monotonic()
    with suppress(_Failed), progress.step(name, log) as step:
        status = _execute(run, name, program, log, results)
        outcome = _count(name, results)
        outcome.seconds = time.monotonic() - started
        if status == _NOTHING_TO_RUN and not outcome.failed:
            outcome.note = _last_line(log)
        elif status != 0 and not outcome.failed:
            outcome.failed += 1
            outcome.failures.append(f"{name}: the suite ended with {status}")
        elif status == 0 and not (outcome.passed or outcome.failed or outcome.skipped):
            outcome.failed += 1
            outcome.failures.append(f"{name}: the suite reported no test")
        step.note = f"{outcome.passed} passed, {outcome.failed} failed, {outcome.skipped} skipped"
        if outcome.note:
            step.note += f" ({outcome.note})"
        if outcome.failed:
            raise _Failed
    if outcome.failed:
        for line in log.read_text(errors="replace").splitlines()[-_SHOWN_ON_FAILURE:]:
            progress.plain(f"  | {line}")
    return outcome


def _execute(run: Run, name: str, program: Path, log: Path, results: Path) -> int:
    """The status of the suite's program; its process group is killed when it runs out of time."""
    consoles = run.logs / name
    shutil.rmtree(consoles, ignore_errors=True)
    consoles.mkdir()
    environment = {
        **os.environ,
        "POLLUX_REPO": str(run.repo),
        "POLLUX_BUILD": str(run.build),
        "POLLUX_PYTHON": str(run.python),
        "POLLUX_TEST_LEVEL": run.level,
        "POLLUX_TEST_LOGS": str(consoles),
        "POLLUX_TEST_RESULTS": str(results),
        "PYTHONPATH": os.pathsep.join((str(run.repo / "tests"), str(run.repo / "tests" / "lib"))),
        "PYTHONUNBUFFERED": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(program)],
            cwd=run.repo,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(_LIMIT_S[run.level])
        except subprocess.TimeoutExpired:
            output.write(f"\nstopped: not done after {_LIMIT_S[run.level]} s\n".encode())
            with suppress(subprocess.TimeoutExpired, ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(_CLEANUP_S)
            return -signal.SIGTERM
        finally:
            # Also on Ctrl-C, and for what a suite left running.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _count(name: str, results: Path) -> Outcome:
    """Add up the JUnit files that the suite wrote."""
    outcome = Outcome(name)
    for file in sorted(results.glob("*.xml")):
        try:
            cases = list(ElementTree.parse(file).iter("testcase"))
        except ElementTree.ParseError as error:
            outcome.failed += 1
            outcome.failures.append(f"{file.name} is no JUnit file: {error}")
            continue
        for case in cases:
            problems = [*case.findall("failure"), *case.findall("error")]
            if problems:
                outcome.failed += 1
                full_name = f"{case.get('classname', '')}::{case.get('name', '')}"
                outcome.failures.append("\n".join([f"{name}: {full_name.removeprefix('::')}", *_reason(problems)]))
            elif case.find("skipped") is not None:
                outcome.skipped += 1
            else:
                outcome.passed += 1
    return outcome


def _reason(problems: list[ElementTree.Element]) -> list[str]:
    """What the JUnit file gives as the reason, both ends of it where it is long."""
    lines = [line for problem in problems for line in problem.get("message", "").splitlines() if line.strip()]
    if len(lines) > _REASON_LINES:
        half = _REASON_LINES // 2
        lines = [*lines[:half], "...", *lines[-half:]]
    return [f"  {line[:_REASON_WIDTH]}" for line in lines]


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "nothing to run")
