"""What the scheduler and a user see while polluxd is dead, or alive and silent."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from allinone import cinder, polluxd, wait
from allinone.cloud import Cloud
from allinone.openstack import OpenStack

VOLUME = ("volume",)
PREFIX = "pollux-back-end-down"
#: cinder-volume asks every few seconds, and waits ten for an answer; the scheduler hears of it in between.
REPORT_S = 240


@pytest.fixture
def back_end_state(cloud: Cloud) -> Callable[[], str]:
    """Of the one pool, as `cinder get-pools --detail` shows it."""
    api = cinder.volume_api(cloud.context)
    name = f"{cloud.settings.host}@{cinder.BACKEND}#{cloud.settings.pool_name}"

    def state() -> str:
        pools = api.get("/scheduler-stats/get_pools?detail=true")["pools"]
        return next(str(pool["capabilities"]["backend_state"]) for pool in pools if pool["name"] == name)

    return state


@pytest.fixture
def leftovers(cloud: Cloud, openstack: OpenStack) -> Iterator[None]:
    yield
    polluxd.start(cloud.context)
    listed = openstack.quiet(*VOLUME, "list", "-f", "value", "-c", "Name").splitlines()
    for name in (one for one in listed if one.startswith(PREFIX)):
        openstack.run(*VOLUME, "delete", name)
        openstack.await_gone(VOLUME, name)


def silence(cloud: Cloud, number: signal.Signals) -> int:
    identity = cloud.processes.identity(polluxd.NAME)
    assert identity
    os.kill(identity.pid, number)
    if number == signal.SIGKILL:
        wait.until("polluxd is dead", lambda: not cloud.processes.running(polluxd.NAME), REPORT_S)
    return identity.pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_a_back_end_without_its_service_is_down_for_the_scheduler_and_gets_no_volume(
    cloud: Cloud, openstack: OpenStack, back_end_state: Callable[[], str], leftovers: None, number: signal.Signals
) -> None:
    name = f"{PREFIX}-{number.name.lower()}"
    wait.until("the back end is up", lambda: back_end_state() == "up", REPORT_S)
    pid = silence(cloud, number)
    try:
        wait.until("the back end is down", lambda: back_end_state() == "down", REPORT_S)
        made = openstack.create(*VOLUME, "create", "--size", "1", "--type", "pollux", name)

        def refused() -> dict[str, Any] | None:
            found = openstack.find(VOLUME, name)
            assert found
            assert found["status"] in ("creating", "error")
            return found if found["status"] == "error" else None

        wait.until("the volume is refused", refused, REPORT_S)
        # The scheduler's word: no back end was even tried.
        messages = openstack.messages(str(made["id"]))
        assert "Could not find any available weighted backend" in messages
        assert "Driver failed" not in messages
    finally:
        if number == signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)
        else:
            polluxd.start(cloud.context)
    wait.until("the back end is up again", lambda: back_end_state() == "up", REPORT_S)
    openstack.create(*VOLUME, "create", "--size", "1", "--type", "pollux", f"{name}-after")
    openstack.await_volume(f"{name}-after", "available")
