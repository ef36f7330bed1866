"""What is measured: processes of ours that serve, and somebody else's that was given to us."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# Ends with this process, whatever becomes of it.
CHILD = ("setpriv", "--pdeathsig", "KILL")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Counters:
    """Of all serving cores together, since the process started."""

    busy_cycles: float = 0
    loops: float = 0
    busy_loops: float = 0


class Target(Protocol):
    """A process that serves sockets."""

    @property
    def pid(self) -> int: ...

    def counters(self) -> Counters | None:
        """None when it does not tell."""

    @contextmanager
    def turn(self) -> Iterator[None]:
        """While it is measured."""


def favour(pid: int = 0) -> None:
    """Put a process and the threads that it will start before others; where that is allowed.

    The kernel keeps a twentieth of each second for everybody else.
    """
    with suppress(PermissionError):
        for task in [int(path.name) for path in Path(f"/proc/{pid or os.getpid()}/task").iterdir()]:
            os.sched_setscheduler(task, os.SCHED_RR, os.sched_param(1))


def unfavour() -> None:
    """Undo favour() in a child. Devices in files need kernel threads, which nobody can favour."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@dataclass(frozen=True)
class Schedule:
    """Nanoseconds in which the threads of a process ran, and in which they could have and others did."""

    ran: int
    waited: int

    @classmethod
    def of(cls, pid: int) -> Schedule:
        ran = waited = 0
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                words = (task / "schedstat").read_text().split()
                ran, waited = ran + int(words[0]), waited + int(words[1])
        return cls(ran, waited)

    def share_since(self, before: Schedule) -> float:
        """Which part of the time that it wanted the process got."""
        ran = self.ran - before.ran
        return ran / max(ran + self.waited - before.waited, 1)


def private_kb(pid: int) -> int:
    """Memory that a process has to itself: what it shares, guests' memory among it, is not counted; hugepages are."""
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("Private_Clean", "Private_Dirty", "Private_Hugetlb"):
            total += int(rest.split()[0])
    return total


class Diskhost:
    """pollux-diskhost: front ends over devices without a store. Disks are given as for its --scsi and --blk."""

    def __init__(
        self,
        build: Path,
        folder: Path,
        cores: tuple[int, ...],
        scsi: list[str],
        blk: list[str],
        *,
        poll: bool = False,
        queues: int = 1,
        favoured: bool = True,
    ) -> None:
        folder.mkdir()
        self.folder = folder
        command = [*CHILD, str(build / "tests" / "initiator" / "pollux-diskhost")]
        command += ["--dir", str(folder), "--reactors", str(len(cores)), "--queues", str(queues), "--log-level", "warn"]
        command += ["--cores", *map(str, cores)]
        for disk in scsi:
            command += ["--scsi", disk]
        for disk in blk:
            command += ["--blk", disk]
        if poll:
            command.append("--poll")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=favour if favoured else unfavour,
        )
        self.pid = self._process.pid
        if self._read() != "ready":
            raise RuntimeError("pollux-diskhost did not start")

    def socket(self, name: str) -> Path:
        """Of a controller or disk; their names tell which it is."""
        found = [path for kind in ("scsi", "blk") if (path := self.folder / f"{kind}-{name}.sock").exists()]
        return found[0]

    def counters(self) -> Counters:
        assert self._process.stdin
        self._process.stdin.write("counters\n")
        self._process.stdin.flush()
        reactors = json.loads(self._read())
        return Counters(*(sum(each[key] for each in reactors) for key in ("busy_cycles", "loops", "busy_loops")))

    @contextmanager
    def turn(self) -> Iterator[None]:
        yield

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)

    def _read(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()


class Peer:
    """Somebody else's target. It is stopped outside of its turns: a poller would take our core."""

    def __init__(self, path: Path, rpc: Path | None) -> None:
        self.path = path
        self._rpc = rpc
        self._tsc_hz = 0.0
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(10)
            probe.connect(str(path))
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            self.pid: int = struct.unpack("3i", credentials)[0]
            os.kill(self.pid, signal.SIGCONT)
            favour(self.pid)
            probe.sendall(struct.pack("<3I", _GET_FEATURES, 1, 0))
            answer = b""
            while len(answer) < 20:
                part = probe.recv(20 - len(answer))
                if not part:
                    raise RuntimeError(f"{path} closed the connection: no vhost-user back end")
                answer += part
        features = struct.unpack("<Q", answer[12:20])[0]
        self.transport = "blk" if features & _BLK_FEATURES else "scsi"

    def set_clock(self, tsc_hz: float) -> None:
        """How fast the processor's counter is; for targets without an RPC socket."""
        self._tsc_hz = tsc_hz

    def counters(self) -> Counters | None:
        if self._rpc is None:
            # A process that polls is busy all the time: an upper bound.
            return Counters(time.perf_counter() * self._tsc_hz)
        threads = self._call("thread_get_stats")["threads"]
        return Counters(sum(thread["busy"] for thread in threads))

    @contextmanager
    def turn(self) -> Iterator[None]:
        os.kill(self.pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGSTOP)

    def close(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _call(self, method: str) -> dict:
        assert self._rpc
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self._rpc))
            connection.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method}).encode())
            text = b""
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                text += connection.recv(1 << 16)
                try:
                    return json.loads(text)["result"]
                except json.JSONDecodeError:
                    continue
        raise RuntimeError(f"no answer to {method} on {self._rpc}")


_GET_FEATURES = 1
# VIRTIO 1.2 5.2.3: BLK_SIZE, which disks have; scsi controllers have no feature of that number (5.6.3).
_BLK_FEATURES = 1 << 6
