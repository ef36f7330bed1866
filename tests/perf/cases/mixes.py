"""Other loads: reads and writes together, long sequential ones, other kinds of volumes and of rings."""

from __future__ import annotations

from contextlib import ExitStack

from pollux.rpc.ttypes import AttachmentInfo

from perf.bench import Bench
from perf.load import Load, Workload
from perf.names import TRANSPORTS
from perf.paired import Side, measure, ratio
from perf.process import Diskhost
from perf.service import MIB, Service

SIZE = 512 * MIB
LONG = 1 << 17


def run(bench: Bench) -> None:
    with ExitStack() as stack:
        host = stack.enter_context(bench.diskhost([f"raw-scsi:0=ram:{SIZE}"], [f"raw-blk=ram:{SIZE}"]))
        service = stack.enter_context(bench.service())
        load = stack.enter_context(bench.load())
        service.ram_pool("ram", 8 * SIZE)
        for transport in TRANSPORTS:
            load.connect(f"raw-{transport}", transport, host.socket(f"raw-{transport}"), io=LONG)
            volume = service.volume("ram", SIZE, thick=True)
            attach(service, load, f"volume-{transport}", volume, transport)
            load.fill([f"raw-{transport}", f"volume-{transport}"])
        _mixed(bench, load, host, service)
        _sequential(bench, load, host, service)
        _kinds(bench, load, service)


def attach(
    service: Service, load: Load, name: str, volume: str, transport: str = "scsi", **options: int
) -> AttachmentInfo:
    """Connect guest `name` to a volume."""
    info = service.attach(volume, transport)
    load.connect(name, transport, info.socket_path, io=LONG, target=info.target or 0, **options)
    return info


def _mixed(bench: Bench, load: Load, host: Diskhost, service: Service) -> None:
    for transport in TRANSPORTS:
        sides = {
            "raw": Side(host, [f"raw-{transport}"], Workload(32, 70)),
            "volume": Side(service, [f"volume-{transport}"], Workload(32, 70)),
        }
        for kind, series in measure(load, sides, bench.options.rounds, bench.options.seconds).items():
            bench.add(f"{kind}/{transport}/mix32/iops", series.median("iops"), "1/s")


def _sequential(bench: Bench, load: Load, host: Diskhost, service: Service) -> None:
    for direction, reads in (("seqread", 100), ("seqwrite", 0)):
        workload = Workload(8, reads, LONG, True)
        sides = {"raw": Side(host, ["raw-scsi"], workload), "volume": Side(service, ["volume-scsi"], workload)}
        for kind, series in measure(load, sides, bench.options.rounds, bench.options.seconds).items():
            bench.add(f"{kind}/scsi/{direction}/mb-s", series.median("mb_s"), "MB/s")


def _kinds(bench: Bench, load: Load, service: Service) -> None:
    """Against the thick volume with a split ring: a thin one, a clone, and the same with other rings."""
    thin = service.volume("ram", SIZE)
    attach(service, load, "thin", thin)
    load.fill(["thin"])
    attach(service, load, "clone", service.clone(service.snapshot(thin)))
    packed = service.volume("ram", SIZE, thick=True)
    attach(service, load, "packed", packed, packed=1)
    indirect = service.volume("ram", SIZE, thick=True)
    attach(service, load, "indirect", indirect, indirect=1)
    load.fill(["packed", "indirect"])
    names = ("thin", "clone", "packed", "indirect")
    sides = {name: Side(service, [name], Workload()) for name in names}
    sides["thick"] = Side(service, ["volume-scsi"], Workload())
    series = measure(load, sides, bench.options.rounds, bench.options.seconds)
    for name in names:
        bench.add(f"volume/{name}/ratio", ratio(series[name], series["thick"]), "IOPS / thick volume, split ring")
