"""All results on one page."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from perf.names import (
    DEPTHS,
    DIRECTIONS,
    FILE_LOADS,
    FLUSH_LOADS,
    GUESTS,
    KINDS,
    MANY_PLACES,
    SNAPSHOT_DEPTHS,
    TRANSPORTS,
)
from perf.results import Results


def draw(results: Results, path: Path) -> None:
    """Results that are missing leave gaps."""
    figure = Figure(figsize=(16, 17))
    axes = figure.subplots(4, 3)
    for column, (figure_name, title) in enumerate(
        (("iops", "thousand IOPS"), ("cycles", "cycles per I/O on the serving core"), ("p99-us", "99th percentile, us"))
    ):
        scale = 1000 if figure_name == "iops" else 1
        for row, transport in enumerate(TRANSPORTS):
            _cells(axes[row][column], results, transport, figure_name, scale)
            axes[row][column].set_title(f"{transport}: {title}")
    _line(axes[2][0], results, "guests/{}/iops", GUESTS, "guests on one core, QD16", "thousand IOPS", 1000)
    _line(axes[2][1], results, "depth/{}/ratio", SNAPSHOT_DEPTHS, "snapshots below", "read IOPS / none", 1)
    _others(axes[2][2], results)
    _sides(axes[3][0], results, "file/file", tuple(FILE_LOADS), "a file: thousand IOPS")
    _sides(axes[3][1], results, "flush/file", tuple(FLUSH_LOADS), "a file, flushed: thousand writes/s")
    _sides(axes[3][2], results, "many", MANY_PLACES, "46 guests on 23 devices: thousand IOPS")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _cells(axis: Axes, results: Results, transport: str, figure: str, scale: int) -> None:
    cells = [f"{direction}{depth}" for direction in DIRECTIONS for depth in DEPTHS]
    for number, kind in enumerate(KINDS):
        values = [(results.value(f"{kind}/{transport}/{cell}/{figure}") or 0) / scale for cell in cells]
        axis.bar([place + number * 0.27 for place in range(len(cells))], values, width=0.25, label=kind)
    axis.set_xticks([place + 0.27 for place in range(len(cells))], cells)
    axis.legend()


def _sides(axis: Axes, results: Results, prefix: str, cells: tuple[str, ...], title: str) -> None:
    """Whoever was measured, peers included."""
    parts = [name.split("/") for name in results.all if name.startswith(f"{prefix}/") and name.endswith("/iops")]
    kinds = list(dict.fromkeys(part[-2] for part in parts))
    for number, kind in enumerate(kinds):
        values = [(results.value(f"{prefix}/{cell}/{kind}/iops") or 0) / 1000 for cell in cells]
        width = 0.8 / len(kinds)
        axis.bar([place + number * width for place in range(len(cells))], values, width=width * 0.95, label=kind)
    axis.set_xticks([place + 0.4 for place in range(len(cells))], cells)
    axis.set_title(title)
    if kinds:
        axis.legend()


def _line(axis: Axes, results: Results, name: str, over: tuple[int, ...], what: str, unit: str, scale: int) -> None:
    points = [(x, value / scale) for x in over if (value := results.value(name.format(x))) is not None]
    if points:
        axis.plot([x for x, _ in points], [y for _, y in points], marker="o")
    axis.set_ylim(bottom=0)
    axis.set_xlabel(what)
    axis.set_ylabel(unit)


def _others(axis: Axes, results: Results) -> None:
    """What is one number, as text."""
    shown = [
        each
        for each in results.all.values()
        if each.name.split("/")[0] in ("idle", "memory", "control", "load", "firstwrite", "firstwrite-file", "queues")
        or each.name.startswith("volume/raw/")
    ]
    text = "\n".join(f"{each.name:<26}{each.value:>12.3f}  {each.unit}" for each in shown)
    axis.axis("off")
    axis.text(0, 1, text, family="monospace", fontsize=7, va="top")
