"""Random 4 KiB writes to places never written before, against the same on a volume that was.

The pool is in memory, and what a machine pays for a page of memory that nothing has touched yet is no cost of a first
write to a volume. So every cluster of the pool has been written once before anything is measured, and the pool keeps
the memory of what is freed.
"""

from __future__ import annotations

from perf.bench import Bench
from perf.cases.mixes import attach
from perf.load import Load, Workload
from perf.results import median
from perf.service import MIB, Service

SIZE = 512 * MIB
_UNITS = SIZE // 4096
_POOL = "ram"
_POOL_SIZE = 6 * SIZE
# The store's own, and what the volumes' maps take.
_METADATA = SIZE // 2


def run(bench: Bench) -> None:
    with bench.service() as service, bench.load() as load:
        service.ram_pool(_POOL, _POOL_SIZE, discard=False)
        _touch(service, load, _POOL_SIZE - _METADATA)
        written = service.volume(_POOL, SIZE)
        attach(service, load, "written", written)
        load.fill(["written"])
        origin = service.volume(_POOL, SIZE)
        attach(service, load, "origin", origin)
        load.fill(["origin"])
        snapshot = service.snapshot(origin)
        for kind in ("thin", "clone"):
            if bench.wants(f"firstwrite/{kind}/ratio"):
                ratios = [_ratio(service, load, kind, snapshot, number) for number in range(bench.options.rounds)]
                bench.add(f"firstwrite/{kind}/ratio", median(ratios), "IOPS / a written volume, QD32")


def _ratio(service: Service, load: Load, kind: str, snapshot: str, number: int) -> float:
    """Every place of a new volume once, scattered; as many writes to the other one right after."""
    name = f"{kind}{number}"
    new = service.volume(_POOL, SIZE) if kind == "thin" else service.clone(snapshot)
    attachment = attach(service, load, name, new)
    first = load.run([name], Workload(32, 0, once=True), 600)
    again = load.run(["written"], Workload(32, 0, once=True), 600)
    load.disconnect(name)
    _delete(service, attachment.attachment_id, new)
    if first.requests != _UNITS or again.requests != _UNITS:
        raise RuntimeError(f"{first.requests} and {again.requests} writes instead of {_UNITS}")
    return first.iops / again.iops


def _touch(service: Service, load: Load, size_bytes: int) -> None:
    volume = service.volume(_POOL, size_bytes)
    attachment = attach(service, load, "touch", volume)
    load.fill(["touch"])
    load.disconnect("touch")
    _delete(service, attachment.attachment_id, volume)


def _delete(service: Service, attachment_id: str, volume: str) -> None:
    """Return when its space is back."""
    free_bytes = service.free_bytes(_POOL)
    service.detach(attachment_id)
    service.delete(volume)
    service.wait_for_jobs()
    if service.free_bytes(_POOL) <= free_bytes:
        raise RuntimeError(f"deleting {volume} gave no space back")
