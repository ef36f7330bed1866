"""How deep the reactors' cores may sleep is the service's to say while it runs, and the host's again afterwards."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from pollux_testing import Polluxd

_CORE = min(os.sched_getaffinity(0))
_CPU = Path(f"/sys/devices/system/cpu/cpu{_CORE}")
_BOUND = _CPU / "power" / "pm_qos_resume_latency_us"
_NO_SLEEP = "n/a"


def _bound() -> str:
    return _BOUND.read_text().strip()


def _sleeps() -> int:
    """How often the core has gone to sleep; spinning in the kernel is none."""
    states = (_CPU / "cpuidle").glob("state*")
    return sum(int((state / "usage").read_text()) for state in states if int((state / "latency").read_text()) > 0)


@pytest.fixture
def before(polluxd: Polluxd) -> str:
    """The bound of the core without the service, which serves from that core with no sleep when it starts next."""
    if not os.access(_BOUND, os.W_OK):
        pytest.skip(f"{_BOUND} cannot be written: how deep cores sleep is not ours")
    polluxd.stop()
    bound = _bound()
    if bound == _NO_SLEEP:
        pytest.skip(f"{_BOUND} forbids sleep already")
    settings = f"[reactors]\ncores = [{_CORE}]\nresume_latency_us = 0\n"
    polluxd.config.write_text(polluxd.config.read_text().replace("[reactors]\n", settings))
    return bound


def test_the_bound_goes_with_the_service_that_set_it(polluxd: Polluxd, before: str) -> None:
    polluxd.start()
    assert _bound() == _NO_SLEEP
    assert polluxd.stop() == 0
    assert _bound() == before


def test_what_a_killed_service_leaves_is_put_back_by_the_next(polluxd: Polluxd, before: str) -> None:
    polluxd.start()
    polluxd.kill()
    assert _bound() == _NO_SLEEP
    polluxd.start()
    assert _bound() == _NO_SLEEP
    assert polluxd.stop() == 0
    assert _bound() == before


@pytest.mark.usefixtures("before")
@pytest.mark.skipif(not list(_CPU.glob("cpuidle/state*")), reason="the kernel does not tell how cores sleep")
def test_the_core_of_an_idle_reactor_does_not_sleep(polluxd: Polluxd) -> None:
    polluxd.start()
    time.sleep(0.2)
    slept = _sleeps()
    time.sleep(1)
    assert _sleeps() == slept
