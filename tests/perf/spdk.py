"""SPDK's vhost as a peer: one reactor that polls, with everything behind vhost-user-blk."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perf.process import CHILD, Counters, favour, unfavour

_START_S = 60
_HUGEPAGES_MB = 1024
_BLOCK = 512


class Spdk:
    """One process, of the program build/bin/vhost below `source`. It is stopped outside of its turns, since it would
    take our core; set-up is a turn too."""

    def __init__(self, source: Path, folder: Path, core: int, *, favoured: bool) -> None:
        program = source / "build" / "bin" / "vhost"
        if not program.exists():
            raise FileNotFoundError(f"{program} is missing: build SPDK")
        if (free := _free_hugepages_mb()) < _HUGEPAGES_MB:
            raise RuntimeError(f"SPDK wants {_HUGEPAGES_MB} MiB of 2 MiB pages and {free} are free: vm.nr_hugepages")
        self._folder = folder
        self._exports = 0
        self._rpc = folder / "rpc"
        self.log = folder / "log"
        command = [*CHILD, str(program), "-S", str(folder), "-r", str(self._rpc)]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "-m", f"[{core}]", "-s", str(_HUGEPAGES_MB), "--iova-mode", "va"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=favour if favoured else unfavour,
            )
        self.pid = self._process.pid
        deadline = time.monotonic() + _START_S
        while True:
            try:
                self.call("spdk_get_version")
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    tail = self.log.read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"SPDK did not start:\n{tail}") from None
                time.sleep(0.05)

    # -- devices

    def memory(self, name: str, size: int) -> None:
        self.call("bdev_malloc_create", name=name, num_blocks=size // _BLOCK, block_size=_BLOCK)

    def file(self, name: str, path: str, *, uring: bool = False) -> None:
        """A file or block device."""
        kind = "bdev_uring_create" if uring else "bdev_aio_create"
        self.call(kind, name=name, filename=path, block_size=_BLOCK)

    def split(self, name: str, parts: int) -> None:
        """Devices `name`p0, `name`p1 and so on."""
        self.call("bdev_split_create", base_bdev=name, split_count=parts)

    def store(self, name: str) -> None:
        """A store of volumes of the device's name, which trusts that free clusters may hold anything."""
        self.call("bdev_lvol_create_lvstore", bdev_name=name, lvs_name=f"{name}-store", clear_method="none")

    def volume(self, store: str, name: str, size_mb: int, *, thin: bool) -> str:
        self.call(
            "bdev_lvol_create",
            **{"lvs_name": f"{store}-store", "lvol_name": name, "size_in_mib": size_mb},
            **{"thin_provision": thin, "clear_method": "none"},
        )
        return f"{store}-store/{name}"

    def snapshot(self, volume: str, name: str) -> str:
        self.call("bdev_lvol_snapshot", lvol_name=volume, snapshot_name=name)
        return f"{volume.split('/')[0]}/{name}"

    def clone(self, snapshot: str, name: str) -> str:
        self.call("bdev_lvol_clone", snapshot_name=snapshot, clone_name=name)
        return f"{snapshot.split('/')[0]}/{name}"

    def delete(self, volume: str) -> None:
        self.call("bdev_lvol_delete", name=volume)

    def export(self, device: str) -> str:
        """A new socket that serves the device."""
        self._exports += 1
        self.call("vhost_create_blk_controller", ctrlr=f"v{self._exports}", dev_name=device)
        return f"{self._folder}/v{self._exports}"

    def withdraw(self, path: str) -> None:
        self.call("vhost_delete_controller", ctrlr=path.rsplit("/", 1)[1])

    # -- measuring

    def counters(self) -> Counters:
        return Counters(sum(thread["busy"] for thread in self.call("thread_get_stats")["threads"]))

    @contextmanager
    def turn(self) -> Iterator[None]:
        os.kill(self.pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGSTOP)

    def close(self) -> None:
        # Nothing of it is worth an orderly end, which waits for its guests.
        self._process.kill()
        self._process.wait(30)

    def call(self, method: str, **parameters: Any) -> Any:
        request: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": method}
        if parameters:
            request["params"] = parameters
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(120)
            connection.connect(str(self._rpc))
            connection.sendall(json.dumps(request).encode())
            text = b""
            while True:
                part = connection.recv(1 << 16)
                text += part
                try:
                    answer = json.loads(text)
                    break
                except json.JSONDecodeError:
                    if not part:
                        raise RuntimeError(f"SPDK closed the connection at {method}") from None
        if "error" in answer:
            raise RuntimeError(f"SPDK: {method}: {answer['error']['message']}")
        return answer["result"]


def _free_hugepages_mb() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("HugePages_Free:"):
            return int(line.split()[1]) * 2
    return 0
