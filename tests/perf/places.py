"""Where devices that are no memory come from: files in a folder, in an XFS of its own, and block devices.

All of their space is written beforehand: what a file system pays for space that it has to find first is no cost of what
is measured.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

MIB = 1 << 20
_XFS_MB = 6 * 1024


def available() -> tuple[str, ...]:
    """Names of places."""
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        return ("file",)
    return ("file", "xfs", "loop") if shutil.which("mkfs.xfs") else ("file", "loop")


class Place:
    """Makes devices."""

    def __init__(self, folder: Path, stack: ExitStack | None) -> None:
        self.folder = folder
        self._stack = stack

    def device(self, name: str, size_bytes: int) -> str:
        """The path of a new file or block device."""
        path = self.folder / name
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            for offset in range(0, size_bytes, MIB):
                os.pwrite(descriptor, bytes(MIB), offset)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return _loop(path, self._stack) if self._stack else str(path)


@contextmanager
def place(name: str, folder: Path) -> Iterator[Place]:
    """Everything that it made goes at its end."""
    own = folder / f"place-{name}"
    own.mkdir()
    try:
        with ExitStack() as stack:
            if name == "xfs":
                image = folder / "xfs.img"
                stack.callback(image.unlink)
                with image.open("wb") as made:
                    made.truncate(_XFS_MB * MIB)
                device = _loop(image, stack)
                _run("mkfs.xfs", "-q", "-f", device)
                _run("mount", device, str(own))
                stack.callback(_run, "umount", str(own))
            yield Place(own, stack if name == "loop" else None)
    finally:
        shutil.rmtree(own)


def _loop(path: Path, stack: ExitStack) -> str:
    device = _run("losetup", "--find", "--show", "--direct-io=on", str(path)).strip()
    stack.callback(_run, "losetup", "--detach", device)
    return device


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
