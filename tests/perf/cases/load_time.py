"""How long a start takes after a crash: a pool of 1 TiB with ten busy volumes, and one with 5,000 volumes and as many
snapshots."""

from __future__ import annotations

from perf.bench import Bench
from perf.cases.mixes import attach
from perf.load import Workload
from perf.service import MIB, Service

_TIB = 1 << 40
_VOLUMES = 10
_VOLUME = 64 * 1024 * MIB
# In random places of each volume, one cluster each for most of them.
_WRITES = 2000
_MANY = 5000


def run(bench: Bench) -> None:
    if bench.wants("load/dirty-1tib-s"):
        with bench.service() as service, bench.load() as load:
            service.file_pool("file", _TIB)
            for number in range(_VOLUMES):
                attach(service, load, f"guest{number}", service.volume("file", _VOLUME))
                load.run([f"guest{number}"], Workload(32, 0, requests=_WRITES), 120)
            bench.add("load/dirty-1tib-s", _restart(service), "s from start to the control port, after a kill")
    if bench.wants("load/5000-s"):
        with bench.service() as service:
            service.file_pool("file", _TIB)
            for _ in range(_MANY):
                service.snapshot(service.volume("file", _VOLUME))
            bench.add("load/5000-s", _restart(service), "s from start to the control port, after a kill")


def _restart(service: Service) -> float:
    service.kill()
    return service.start()
