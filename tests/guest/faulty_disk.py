"""A disk with a volatile cache that fails when it is told to, under a real polluxd: see faulty-disk/main.cpp."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from pollux_testing import MIB, Polluxd

from guest.timing import wait_until

_START_S = 10
_END_S = 20
_POOL_MB = 256
# docs/on-disk-format.md: a cluster, which holds superblock and owner's record, then the journal's ring.
_CLUSTER_BYTES = 256 << 10
_JOURNAL_BYTES = _POOL_MB * MIB // 64


class FaultyDisk:
    """`path` is its file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "disk"
        self._control = folder / "control"

    def fail(self, operation: str, error: int = errno.EIO, *, count: int = 1 << 30, journal: bool = False) -> None:
        """The next `count` reads, writes or flushes fail with `error` and do nothing.

        Only the journal's writes do if `journal`, else all but what touches the superblock's cluster alone, where the
        owner's beat is. A flush that fails loses all that was not flushed.
        """
        end = _CLUSTER_BYTES + _JOURNAL_BYTES if journal else _POOL_MB * MIB
        self._command(f"fail {operation} {error} {count} {_CLUSTER_BYTES} {end}")

    def work(self) -> None:
        self._command("work")

    def cut_power(self, polluxd: Polluxd, seed: int) -> None:
        """The power of disk and service goes and comes back. Nothing is answered in between."""
        os.kill(polluxd.pid, signal.SIGSTOP)
        wait_until(lambda: _has_stopped(polluxd.pid), _END_S, "polluxd stops")
        self._command(f"cut {seed}")
        polluxd.cut_power()
        self.work()
        polluxd.start()

    def failed(self) -> int:
        """How many requests have failed."""
        return int(self._control.read_text())

    def _command(self, line: str) -> None:
        with open(self._control, "r+b", buffering=0) as control:
            control.write(line.encode())


def _has_stopped(pid: int) -> bool:
    """All threads have, but those of the kernel that wait for the disk."""
    stats = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(stat.rpartition(") ")[2][0] in "TD" for stat in stats)


@contextmanager
def polluxd_on_a_faulty_disk(folder: Path, log: Path) -> Iterator[tuple[Polluxd, FaultyDisk]]:
    """A polluxd whose pool is on a disk that can fail; `folder` is theirs."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("FUSE is not there, or not for this user")
    mounted = folder / "faulty"
    mounted.mkdir()
    program = Path(os.environ["POLLUX_BUILD"]) / "tests" / "guest" / "pollux-faulty-disk"
    with ExitStack() as undo:
        # It unmounts itself at SIGTERM.
        process = subprocess.Popen(["setpriv", "--pdeathsig", "TERM", program, mounted, str(_POOL_MB * MIB)])
        undo.callback(process.wait, _END_S)
        undo.callback(process.terminate)
        wait_until(lambda: mounted.is_mount() or process.poll() is not None, _START_S, "the faulty disk starts")
        disk = FaultyDisk(mounted)
        service = Polluxd(folder, log)
        undo.callback(service.close)
        # Whatever a test leaves, the service can end.
        undo.callback(disk.work)
        service.start()
        service.create_pool(device=disk.path)
        yield service, disk
