"""Which peers a case is measured beside, by name, and what they are started for."""

from __future__ import annotations

from contextlib import ExitStack

from perf.bench import Bench
from perf.qsd import Qsd
from perf.spdk import Spdk


def qsds(bench: Bench, stack: ExitStack, *aios: str, favoured: bool = False) -> dict[str, Qsd]:
    """By name, one for each way to do I/O; none when they were not asked for."""
    made = {}
    for aio in aios if bench.options.qsd else ():
        peer = Qsd(bench.new_sockets(), bench.options.cores[0], aio, favoured=favoured)
        stack.callback(peer.close)
        made["qsd" if aio == "io_uring" else f"qsd-{aio}"] = peer
    return made


def spdk(bench: Bench, stack: ExitStack, *, favoured: bool = False) -> Spdk | None:
    """None when it was not asked for."""
    if not bench.options.spdk:
        return None
    peer = Spdk(bench.options.spdk, bench.new_sockets(), bench.options.cores[0], favoured=favoured)
    stack.callback(peer.close)
    return peer
