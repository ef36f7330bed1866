"""qemu-storage-daemon as a peer: files behind vhost-user-blk, all served by one thread on one core."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perf.process import CHILD, Counters, favour, unfavour

PROGRAM = "qemu-storage-daemon"
_START_S = 30


class Qsd:
    """One process. `aio` is how it does I/O on files: io_uring, native or threads."""

    def __init__(self, folder: Path, core: int, aio: str, *, favoured: bool) -> None:
        if not shutil.which(PROGRAM):
            raise FileNotFoundError(f"{PROGRAM} is not installed")
        self._folder = folder
        self._aio = aio
        self._exports = 0
        self._sockets: dict[str, list[str]] = {}
        monitor = folder / "qmp"
        self._process = subprocess.Popen(
            [
                *(*CHILD, PROGRAM, "--object", "iothread,id=io"),
                *("--chardev", f"socket,id=qmp,path={monitor},server=on,wait=off", "--monitor", "chardev=qmp"),
            ],
            stdin=subprocess.DEVNULL,
            preexec_fn=favour if favoured else unfavour,
        )
        self.pid = self._process.pid
        self._qmp = _connect(monitor, self._process)
        self._lines = self._qmp.makefile("rb")
        self._lines.readline()
        self._call("qmp_capabilities")
        # Its other threads, as those of ours, may run elsewhere.
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            if (task / "comm").read_text().startswith("IO io"):
                os.sched_setaffinity(int(task.name), {core})

    def open(self, node: str, path: str) -> None:
        """A file or block device as node `node`."""
        kind = "host_device" if Path(path).is_block_device() else "file"
        cache = {"direct": self._aio != "threads"}
        protocol = {"driver": kind, "node-name": f"{node}-file", "filename": path, "aio": self._aio, "cache": cache}
        self._call("blockdev-add", **protocol, discard="unmap")
        form = "qcow2" if path.endswith(".qcow2") else "raw"
        self._call(
            "blockdev-add", driver=form, file=f"{node}-file", discard="unmap", cache=cache, **{"node-name": node}
        )

    def share(self, node: str, whole: str, offset: int, size: int) -> None:
        """Node `node`: a part of the file or device that node `whole` stands on."""
        self._call("blockdev-add", driver="raw", file=f"{whole}-file", offset=offset, size=size, **{"node-name": node})

    def export(self, node: str) -> str:
        """A new socket that serves the node."""
        self._exports += 1
        path = f"{self._folder}/e{self._exports}"
        self._call(
            "block-export-add",
            **{"type": "vhost-user-blk", "id": path.rsplit("/", 1)[1], "node-name": node, "writable": True},
            **{"addr": {"type": "unix", "path": path}, "iothread": "io", "num-queues": 1},
        )
        self._sockets.setdefault(node, []).append(path)
        return path

    def export_all(self, nodes: Iterable[str]) -> list[str]:
        """Sockets of nodes that share devices: nobody may be connected while one of them gets its export."""
        return [self.export(node) for node in nodes]

    def close_node(self, node: str) -> None:
        """With its exports; nobody is connected."""
        for path in self._sockets.pop(node):
            self._call("block-export-del", id=path.rsplit("/", 1)[1], mode="hard")
            deadline = time.monotonic() + _START_S
            while any(each["id"] == path.rsplit("/", 1)[1] for each in self._call("query-block-exports")):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{PROGRAM} does not give up {path}")
                time.sleep(0.01)
        self._call("blockdev-del", **{"node-name": node})
        self._call("blockdev-del", **{"node-name": f"{node}-file"})

    def counters(self) -> Counters | None:
        return None

    @contextmanager
    def turn(self) -> Iterator[None]:
        yield

    def close(self) -> None:
        self._qmp.close()
        self._process.terminate()
        self._process.wait(30)

    def _call(self, command: str, **arguments: Any) -> Any:
        self._qmp.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            line = self._lines.readline()
            if not line:
                raise RuntimeError(f"{PROGRAM} died of {command}")
            answer = json.loads(line)
            if "error" in answer:
                raise RuntimeError(f"{PROGRAM}: {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]


def _connect(path: Path, process: subprocess.Popen[bytes]) -> socket.socket:
    deadline = time.monotonic() + _START_S
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
            connection.settimeout(60)
            return connection
        except OSError:
            connection.close()
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{PROGRAM} did not start") from None
            time.sleep(0.01)
