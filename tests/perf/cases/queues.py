"""One guest with two queues on two serving cores, against the same guest with one. Needs a third for the load."""

from __future__ import annotations

import os

from perf.bench import Bench
from perf.load import Workload
from perf.paired import Side, measure, ratio
from perf.service import MIB

SIZE = 512 * MIB


def run(bench: Bench) -> None:
    serve, load_core = bench.options.cores
    second = min(os.sched_getaffinity(0) - {serve, load_core})
    with bench.service(cores=(serve, second)) as service, bench.load() as load:
        service.ram_pool("ram", 4 * SIZE)
        for queues in (1, 2):
            info = service.attach(service.volume("ram", SIZE, thick=True), "scsi", queues)
            load.connect(f"queues{queues}", "scsi", info.socket_path, target=info.target, queues=queues, io=1 << 17)
            load.fill([f"queues{queues}"])
        sides = {f"{queues}": Side(service, [f"queues{queues}"], Workload(32 // queues)) for queues in (1, 2)}
        series = measure(load, sides, bench.options.rounds, bench.options.seconds)
        bench.add("queues/2/ratio", ratio(series["2"], series["1"]), "IOPS of two queues on two cores / one on one")
