"""Command line of tests/perf/run."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]

_DESCRIPTION = """
Measures polluxd under the load of our own vhost-user front end (pollux-bench) and prints a table of names, values and
units. What is compared is measured in turns, a fraction of a second each, and the ratio is the median of the turns'
ratios, so that the machine's other work cancels out. Cycles per I/O are those that the serving core spent on turns of
its poll loop that found work (its own counters, by the processor's time-stamp counter); no privilege is needed.
"""

_EPILOG = """
Needs at least two cores: one serves, one makes the load. Everything listens on the loopback address or in a
temporary directory. Names: null is a device that does nothing, raw a device in memory, volume a volume of a pool in
memory; rr and rw are random reads and writes of 4 KiB with 1, 32 or 128 in flight. Those that begin with file/, flush/,
firstwrite-file/ and many/ have devices in files: file is one in --dir, xfs one in an XFS of its own and loop a block
device (the latter two need root and loop devices); wf1 is a guest that flushes after each write, wf16 are 16 of them,
and w8f a guest with 8 in flight that flushes after every 8 writes.
docs/performance.md explains the figures.

Examples:
  tests/perf/run --json results.json --plot results.png
  tests/perf/run --only control/
  tests/perf/run --only volume/scsi/rr32 --seconds 0.5 --rounds 9
  tests/perf/run --against qsd --against spdk=/usr/src/spdk --only flush/
  tests/perf/run --against /var/tmp/spdk/vhost.0 --against-rpc /var/tmp/spdk.sock --like raw
"""


@dataclass(frozen=True)
class Options:
    """What was asked for. `only` is empty or a list of prefixes of result names."""

    only: tuple[str, ...]
    json: Path | None
    plot: Path | None
    against: Path | None
    qsd: bool
    spdk: Path | None
    against_rpc: Path | None
    like: str
    build: Path
    folder: Path | None
    cores: tuple[int, int]
    rounds: int
    seconds: float

    @property
    def peers(self) -> bool:
        """Whether some were asked for that the benchmark starts itself."""
        return self.qsd or self.spdk is not None

    def wants(self, name: str) -> bool:
        return not self.only or any(name.startswith(prefix) or prefix.startswith(f"{name}/") for prefix in self.only)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="tests/perf/run",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write all results there")
    made.add_argument("--plot", type=Path, metavar="FILE", help="draw them on one page (PNG)")
    made.add_argument(
        "--only", action="append", default=[], metavar="PREFIX", help="only results whose names begin so (repeatable)"
    )
    made.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="WHAT",
        help="measure this in turns with ours, and nothing else: the socket of a vhost-user-scsi or -blk target (target"
        " 0, LUN 0), or qsd for qemu-storage-daemon, or spdk=FOLDER for SPDK's vhost as built there; the latter two are"
        " started by the benchmark, and may be given together",
    )
    made.add_argument(
        "--against-rpc", type=Path, metavar="SOCKET", help="its JSON-RPC socket, if it has SPDK's thread_get_stats"
    )
    made.add_argument(
        "--like", choices=("null", "raw", "volume"), default="raw", help="what of ours to compare it with (raw)"
    )
    made.add_argument("--build-dir", type=Path, help="measure what this folder holds instead of building build/release")
    made.add_argument("--dir", type=Path, help="folder for file devices and logs (a temporary one in /var/tmp)")
    made.add_argument("--cores", default="0,1", metavar="N,M", help="core that serves, core that makes the load (0,1)")
    made.add_argument("--rounds", type=int, default=5, help="turns of everything that is compared (5)")
    made.add_argument("--seconds", type=float, default=0.25, help="length of a turn (0.25)")
    made.add_argument("--list", action="store_true", help="list the names of all results and end")
    return made


def options(arguments: argparse.Namespace, build: Path) -> Options:
    """Raises ValueError when the cores make no sense."""
    serve, load = (int(word) for word in arguments.cores.split(","))
    if serve == load or min(serve, load) < 0:
        raise ValueError(f"--cores wants two different cores, not {arguments.cores}")
    qsd, spdk, sockets = False, None, []
    for what in arguments.against:
        if what == "qsd":
            qsd = True
        elif what.startswith("spdk="):
            spdk = Path(what.removeprefix("spdk=")).resolve()
        else:
            sockets.append(Path(what))
    if len(sockets) > 1 or (sockets and (qsd or spdk)):
        raise ValueError("--against takes one socket, or qsd and spdk=FOLDER")
    return Options(
        only=tuple(arguments.only),
        json=arguments.json,
        plot=arguments.plot,
        against=sockets[0] if sockets else None,
        qsd=qsd,
        spdk=spdk,
        against_rpc=arguments.against_rpc,
        like=arguments.like,
        build=build,
        folder=arguments.dir,
        cores=(serve, load),
        rounds=arguments.rounds,
        seconds=arguments.seconds,
    )
