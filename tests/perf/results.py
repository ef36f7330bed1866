"""Results: names, values, units; the table and the file of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Result:
    name: str
    value: float
    unit: str


class Results:
    """Kept in the order in which they came."""

    def __init__(self) -> None:
        self.all: dict[str, Result] = {}

    def add(self, name: str, value: float, unit: str) -> None:
        self.all[name] = Result(name, value, unit)

    def value(self, name: str) -> float | None:
        found = self.all.get(name)
        return found.value if found else None

    def write(self, path: Path) -> None:
        rows = [{"name": each.name, "value": each.value, "unit": each.unit} for each in self.all.values()]
        path.write_text(json.dumps({"results": rows}, indent=1) + "\n")

    def table(self) -> str:
        width = max((len(name) for name in self.all), default=0)
        return "\n".join(f"{each.name:<{width}}  {_shown(each.value):>14}  {each.unit}" for each in self.all.values())


def median(values: Iterable[float]) -> float:
    return statistics.median(list(values))


def _shown(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
