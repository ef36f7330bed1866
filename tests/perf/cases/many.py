"""46 guests with one queue each on 23 devices, two guests a device: random reads of 4 KiB, all served by one core."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from perf.bench import Bench
from perf.cases.files import connect
from perf.load import Load, Workload
from perf.names import MANY_PLACES
from perf.paired import Side, measure, ratio
from perf.peers import qsds, spdk
from perf.places import MIB, Place, place
from perf.process import Target
from perf.service import Service
from perf.spdk import Spdk

DEVICES = 23
SHARE = 2
DEPTH = 16
# Of a guest's disk.
SIZE = 8 * MIB
_POOL = SHARE * SIZE + 48 * MIB
_STORE_MB = 16
_MEMORY = Path("/dev/shm")


def run(bench: Bench) -> None:
    for where in MANY_PLACES:
        if bench.wants(f"many/{where}"):
            _run_in(bench, where)


def _run_in(bench: Bench, where: str) -> None:
    memory = where == "ram"
    with ExitStack() as stack:
        at = stack.enter_context(place("file", _memory_folder(stack) if memory else bench.folder))
        load = stack.enter_context(bench.load(favoured=memory))
        service = stack.enter_context(bench.service(favoured=memory))
        targets: dict[str, Target] = {"volume": service}
        _connect_ours(service, load, None if memory else at)
        # QSD has no device in memory; a file in memory is the nearest.
        aios = ("threads",) if memory else ("io_uring", "native")
        for name, qsd in qsds(bench, stack, *aios, favoured=memory).items():
            targets[name] = qsd
            for device in range(DEVICES):
                node = f"{name}-d{device}"
                qsd.open(node, at.device(node, SHARE * SIZE))
                for share in range(SHARE):
                    qsd.share(f"{name}{device * SHARE + share}", node, share * SIZE, SIZE)
            for number, path in enumerate(qsd.export_all(f"{name}{number}" for number in range(DEVICES * SHARE))):
                connect(load, f"{name}{number}", path)
        if peer := spdk(bench, stack, favoured=memory):
            targets["spdk"] = peer
            with peer.turn():
                _connect_spdk(peer, load, None if memory else at)
        workload = Workload(DEPTH, yields=not memory)
        sides = {
            name: Side(target, [f"{name}{number}" for number in range(DEVICES * SHARE)], workload)
            for name, target in targets.items()
        }
        series = measure(load, sides, bench.options.rounds * 2, bench.options.seconds)
        for name, measured in series.items():
            bench.add(f"many/{where}/{name}/iops", measured.median("iops"), "1/s, all 46 guests")
            bench.add(f"many/{where}/{name}/worst", measured.median("worst_share"), "worst guest / mean")
            if measured.cycles:
                bench.add(f"many/{where}/{name}/cycles", measured.median("cycles"), "cycles/IO")
            if name != "volume":
                bench.add(f"many/{where}/volume-over-{name}", ratio(series["volume"], measured), "IOPS / theirs")


def _memory_folder(stack: ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pollux-perf-", dir=_MEMORY)))


def _connect_ours(service: Service, load: Load, at: Place | None) -> None:
    """Each device is a pool."""
    for device in range(DEVICES):
        pool = f"pool{device}"
        if at:
            service.device_pool(pool, at.device(pool, _POOL))
        else:
            service.ram_pool(pool, _POOL)
        for share in range(SHARE):
            info = service.attach(service.volume(pool, SIZE, thick=True), "blk")
            connect(load, f"volume{device * SHARE + share}", info.socket_path)


def _connect_spdk(peer: Spdk, load: Load, at: Place | None) -> None:
    """Each device is a store of volumes."""
    size = SHARE * SIZE + _STORE_MB * MIB
    for device in range(DEVICES):
        name = f"d{device}"
        if at:
            peer.file(name, at.device(f"spdk-{name}", size))
        else:
            peer.memory(name, size)
        peer.store(name)
        for share in range(SHARE):
            volume = peer.volume(name, f"v{share}", SIZE // MIB, thin=False)
            connect(load, f"spdk{device * SHARE + share}", peer.export(volume))
