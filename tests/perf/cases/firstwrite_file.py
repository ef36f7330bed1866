"""First writes on a file: random 4 KiB writes to places that a thin volume or a clone never held, against writes to a
volume that holds them; beside them those of QSD's qcow2 images and of SPDK's volumes.

A clone's origin is full: each of its first writes leaves a snapshot's data behind.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from perf.bench import Bench
from perf.cases.files import connect
from perf.load import Load, LoadResult, Workload
from perf.names import FIRST_WRITES
from perf.peers import qsds, spdk
from perf.places import MIB, Place, place
from perf.process import Target
from perf.qsd import Qsd
from perf.results import median
from perf.spdk import Spdk

SIZE = 256 * MIB
_UNITS = SIZE // 4096
_POOL = 5 * SIZE


@dataclass
class Maker:
    """Who makes new volumes, and how they are taken away again. `guest` has a volume of it that is all written."""

    target: Target
    # The kind, a name -> a socket to it.
    make: Callable[[str, str], str]
    drop: Callable[[str], None]
    guest: str


class Fresh:
    """A guest with places that were not written yet; its volume is replaced when most of them were."""

    def __init__(self, load: Load, maker: Maker, name: str, kind: str) -> None:
        self._load, self._maker, self._name, self._kind = load, maker, name, kind
        self._done = _UNITS
        self._count = 0

    def write(self, depth: int, seconds: float) -> LoadResult:
        workload = Workload(depth, 0, once=True, skip=self._done, yields=True)
        result = self._load.run([self._guest()], workload, seconds)
        self._done += result.requests
        return result

    def prepare(self) -> None:
        """In a turn of its target, and in nobody's time."""
        if self._done > _UNITS // 2:
            self.close()
            self._count += 1
            self._done = 0
            connect(self._load, self._guest(), self._maker.make(self._kind, self._guest()), fill=False)

    def close(self) -> None:
        """In a turn of its target."""
        if self._count:
            self._load.disconnect(self._guest())
            self._maker.drop(self._guest())

    def _guest(self) -> str:
        return f"{self._name}-{self._kind}-{self._count}"


def run(bench: Bench) -> None:
    with ExitStack() as stack:
        at = stack.enter_context(place("file", bench.folder))
        load = stack.enter_context(bench.load(favoured=False))
        makers = {"volume": _ours(bench, stack, at, load)}
        for name, qsd in qsds(bench, stack, "io_uring").items():
            makers[f"{name}-qcow2"] = _qcow2(qsd, at, load, name)
        if peer := spdk(bench, stack):
            makers["spdk-lvol"] = _lvol(peer, at, load)
        for cell, (kind, depth) in FIRST_WRITES.items():
            if bench.wants(f"firstwrite-file/{cell}"):
                _cell(bench, load, makers, cell, kind, depth)


def _cell(bench: Bench, load: Load, makers: dict[str, Maker], cell: str, kind: str, depth: int) -> None:
    fresh = {name: Fresh(load, maker, name, kind) for name, maker in makers.items()}
    first: dict[str, list[LoadResult]] = {name: [] for name in makers}
    again: dict[str, list[LoadResult]] = {name: [] for name in makers}
    order = list(makers)
    for number in range(bench.options.rounds * 2):
        shift = number % len(order)
        for name in order[shift:] + order[:shift]:
            maker = makers[name]
            written = Workload(depth, 0, yields=True)
            with maker.target.turn():
                fresh[name].prepare()
                first[name].append(fresh[name].write(depth, bench.options.seconds))
                again[name].append(load.run([maker.guest], written, bench.options.seconds))
    for name, each in fresh.items():
        with makers[name].target.turn():
            each.close()
    prefix = f"firstwrite-file/{cell}"
    for name in makers:
        bench.add(f"{prefix}/{name}/iops", median(each.iops for each in first[name]), "1/s")
        bench.add(f"{prefix}/{name}/p50-us", median(each.p50_us for each in first[name]), "us")
        pairs = zip(first[name], again[name], strict=True)
        bench.add(f"{prefix}/{name}/ratio", median(a.iops / b.iops for a, b in pairs), "IOPS / its written volume")
        if name != "volume":
            pairs = zip(first["volume"], first[name], strict=True)
            bench.add(f"{prefix}/volume-over-{name}", median(a.iops / b.iops for a, b in pairs), "IOPS / theirs")


def _ours(bench: Bench, stack: ExitStack, at: Place, load: Load) -> Maker:
    service = stack.enter_context(bench.service(favoured=False))
    service.device_pool("pool", at.device("pool", _POOL))
    attachments: dict[str, tuple[str, str]] = {}

    def attach(name: str, volume: str) -> str:
        info = service.attach(volume, "blk")
        attachments[name] = (info.attachment_id, volume)
        return str(info.socket_path)

    def make(kind: str, name: str) -> str:
        return attach(name, service.volume("pool", SIZE) if kind == "thin" else service.clone(snapshot))

    def drop(name: str) -> None:
        attachment, volume = attachments.pop(name)
        service.detach(attachment)
        service.delete(volume)
        service.wait_for_jobs()

    connect(load, "volume", attach("volume", service.volume("pool", SIZE)))
    origin = service.volume("pool", SIZE)
    connect(load, "origin", attach("origin", origin))
    snapshot = service.snapshot(origin)
    return Maker(service, make, drop, "volume")


def _qcow2(qsd: Qsd, at: Place, load: Load, name: str) -> Maker:
    """Images whose space the file system set aside, and images over a full one."""

    def image(of: str, backing: str = "") -> str:
        path = str(at.folder / f"{of}.qcow2")
        over = ["-b", backing, "-F", "qcow2"] if backing else []
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *over, path, str(SIZE)], check=True)
        subprocess.run(["fallocate", "--keep-size", "--length", str(2 * SIZE), path], check=True)
        return path

    def make(kind: str, of: str) -> str:
        qsd.open(of, image(of, full if kind == "clone" else ""))
        return qsd.export(of)

    def drop(of: str) -> None:
        qsd.close_node(of)
        (at.folder / f"{of}.qcow2").unlink()

    full = image("full")
    qsd.open("full", full)
    connect(load, "full", qsd.export("full"))
    load.disconnect("full")
    qsd.close_node("full")
    qsd.open(name, image(name))
    connect(load, name, qsd.export(name))
    return Maker(qsd, make, drop, name)


def _lvol(peer: Spdk, at: Place, load: Load) -> Maker:
    volumes: dict[str, tuple[str, str]] = {}

    def export(name: str, volume: str) -> str:
        path = peer.export(volume)
        volumes[name] = (path, volume)
        return path

    def make(kind: str, name: str) -> str:
        if kind == "thin":
            return export(name, peer.volume("d", name, SIZE // MIB, thin=True))
        return export(name, peer.clone(snapshot, name))

    def drop(name: str) -> None:
        path, volume = volumes.pop(name)
        peer.withdraw(path)
        peer.delete(volume)

    with peer.turn():
        peer.file("d", at.device("spdk", _POOL))
        peer.store("d")
        connect(load, "spdk-lvol", export("spdk-lvol", peer.volume("d", "written", SIZE // MIB, thin=True)))
        origin = peer.volume("d", "origin", SIZE // MIB, thin=True)
        connect(load, "spdk-origin", export("spdk-origin", origin))
        snapshot = peer.snapshot(origin, "snapshot")
    return Maker(peer, make, drop, "spdk-lvol")
