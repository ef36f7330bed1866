"""What testing needs besides the tests: Debian packages, a Python environment, a build."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from allinone import debian
from allinone.errors import AllInOneError
from allinone.progress import Progress

PRESET = "release"


def prepare(repo: Path, logs: Path, progress: Progress) -> Path:
    """Install missing packages and make the Python environment; the path of its python."""
    base, newer = packages(repo / "tests" / "packages.txt")
    if any(debian.absent(base, newer)) and os.geteuid() != 0:
        missing = " ".join(name for names in debian.absent(base, newer) for name in names)
        raise AllInOneError(f"these packages are missing, and only root can install them: {missing}")
    debian.install(progress, logs / "packages.log", base, newer)
    return _python(repo, logs, progress)


def packages(listing: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The packages that `listing` names: of Debian itself, and of its backports suite."""
    base: list[str] = []
    newer: list[str] = []
    for line in listing.read_text().splitlines():
        words = line.split("#")[0].split()
        if words:
            (newer if words[1:] == ["backports"] else base).append(words[0])
    return tuple(base), tuple(newer)


def build(repo: Path, logs: Path, progress: Progress) -> Path:
    """Build everything with the release preset; the build folder."""
    folder = repo / "build" / PRESET
    log = logs / "build.log"
    log.unlink(missing_ok=True)
    with progress.step("build", log):
        if not (folder / "build.ninja").exists():
            _run(["cmake", "--preset", PRESET], repo, log)
        _run(["cmake", "--build", "--preset", PRESET], repo, log)
    return folder


def _python(repo: Path, logs: Path, progress: Progress) -> Path:
    """A virtual environment with what tests/requirements.txt lists; made anew when what it is made of changes."""
    folder = repo / "build" / "test-venv"
    python = folder / "bin" / "python"
    names = (
        "tests/requirements.txt",
        "driver-python/pyproject.toml",
        "devstack/allinone.d/constraints.txt",
        "thrift/pollux.thrift",
    )
    wanted = hashlib.sha256(b"".join((repo / name).read_bytes() for name in names)).hexdigest()
    stamp = folder / "requirements.sha256"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    log = logs / "python.log"
    log.unlink(missing_ok=True)
    with progress.step("Python environment", log):
        if folder.exists():
            shutil.rmtree(folder)
        _run(["/usr/bin/python3", "-m", "venv", str(folder)], repo, log)
        _run([str(python), "-m", "pip", "install", "-q", "-r", names[0]], repo, log)
    stamp.write_text(wanted)
    return python


def _run(command: list[str], folder: Path, log: Path) -> None:
    with log.open("a") as output:
        output.write(f"$ {' '.join(command)}\n")
        output.flush()
        status = subprocess.run(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if status != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
        raise AllInOneError(f"{tail}\n{' '.join(command[:3])} ended with {status}; see {log}")
