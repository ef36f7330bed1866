"""Measuring several things in turns, so that whatever else the machine does hits all of them alike."""

from __future__ import annotations

from dataclasses import dataclass, field

from perf.load import Load, Workload
from perf.process import Schedule, Target
from perf.results import median

# The first turn finds cold caches and a sleeping core.
_WARM_UP_S = 0.05


@dataclass(frozen=True)
class Side:
    """Guests that are loaded together, and who serves them."""

    target: Target
    guests: list[str]
    workload: Workload


@dataclass
class Series:
    """What the turns of one side came to."""

    iops: list[float] = field(default_factory=list)
    cycles: list[float] = field(default_factory=list)
    p50_us: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)
    p999_us: list[float] = field(default_factory=list)
    mb_s: list[float] = field(default_factory=list)
    flush_p50_us: list[float] = field(default_factory=list)
    worst_share: list[float] = field(default_factory=list)

    def median(self, what: str) -> float:
        return median(getattr(self, what))


def measure(load: Load, sides: dict[str, Side], rounds: int, seconds: float) -> dict[str, Series]:
    """Every side once a round, in another order each time."""
    series = {name: Series() for name in sides}
    order = list(sides)
    for number in range(rounds):
        shift = number % len(order)
        for name in order[shift:] + order[:shift]:
            _turn(load, sides[name], series[name], seconds)
    return series


def ratio(over: Series, under: Series, what: str = "iops") -> float:
    """The median of the rounds' ratios."""
    pairs = zip(getattr(over, what), getattr(under, what), strict=True)
    return median(a / b for a, b in pairs if b)


def _turn(load: Load, side: Side, series: Series, seconds: float) -> None:
    with side.target.turn():
        load.run(side.guests, side.workload, _WARM_UP_S)
        before, schedule = side.target.counters(), Schedule.of(side.target.pid)
        result = load.run(side.guests, side.workload, seconds)
        share, after = Schedule.of(side.target.pid).share_since(schedule), side.target.counters()
    series.iops.append(result.iops)
    series.p50_us.append(result.p50_us)
    series.p99_us.append(result.p99_us)
    series.p999_us.append(result.p999_us)
    series.flush_p50_us.append(result.flush_p50_us)
    series.worst_share.append(result.worst_share)
    series.mb_s.append(result.iops * side.workload.io / 1e6)
    if before and after:
        # The counter goes on while others have the core.
        series.cycles.append((after.busy_cycles - before.busy_cycles) * share / max(result.requests, 1))
