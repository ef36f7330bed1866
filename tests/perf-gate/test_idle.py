"""Idle guests cost next to nothing, and one that begins again does not wait.

Times of a machine that has other work are worth little, so the best of a few runs counts: a reactor that does not sleep
as it should, or whose core sleeps deeper than it may, is slow in each of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_REPO = Path(os.environ["POLLUX_REPO"])
_BUILD = Path(os.environ["POLLUX_BUILD"])
_BOUND = Path("/sys/devices/system/cpu/cpu0/power/pm_qos_resume_latency_us")
_PACKAGES = ("tests", "tests/lib", "devstack/allinone.d")
_RUNS = 4
_LIMITS = {"sleepless/cpu-percent": 1.0, "sleepless/wake-us": 50.0}


def _measure(results: Path) -> dict[str, float]:
    subprocess.run(
        [sys.executable, "-m", "perf", "--build-dir", _BUILD, "--only", "sleepless/", "--json", results],
        env=os.environ | {"PYTHONPATH": ":".join(str(_REPO / each) for each in _PACKAGES)},
        check=True,
        timeout=300,
    )
    measured = json.loads(results.read_text())["results"]
    return {each["name"]: each["value"] for each in measured}


def _fit(figures: dict[str, float]) -> bool:
    return all(figures[name] <= most for name, most in _LIMITS.items())


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core serves, another makes the load")
@pytest.mark.skipif(not os.access(_BOUND, os.W_OK), reason=f"{_BOUND} cannot be written")
def test_64_idle_guests_take_a_hundredth_of_a_core_and_one_wakes_in_50_us(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []
    while len(seen) < _RUNS and not any(map(_fit, seen)):
        seen.append(_measure(tmp_path / f"{len(seen)}.json"))
    assert _fit(seen[-1]), seen
