"""polluxd dies or restarts under a guest's I/O: the guest sees a pause, never an error or a wrong byte."""

from __future__ import annotations

import pytest
from pollux_testing import MIB, Polluxd, disk_of

from guest.qemu import QemuDirect

_ROUND_S = 60


def _await_rounds(guest: QemuDirect) -> None:
    """Both workers finish a round that began after this was called."""
    start = guest.console.position
    for worker in (0, 1):
        guest.wait(f"@@ROUND worker={worker}", _ROUND_S, start)
    start = guest.console.position
    for worker in (0, 1):
        guest.wait(f"@@ROUND worker={worker}", _ROUND_S, start)


@pytest.mark.parametrize("transport", ["scsi", "blk"])
@pytest.mark.parametrize("kills", [3, pytest.param(25, marks=pytest.mark.full)])
def test_killed_service_costs_a_guest_only_a_pause(polluxd: Polluxd, load: str, transport: str, kills: int) -> None:
    volume = polluxd.create_volume(64 * MIB)
    attachment = polluxd.attach(volume.volume_id, transport)
    with QemuDirect(load, [disk_of(attachment)]) as guest:
        guest.wait("@@LOAD", 60)
        for _ in range(kills):
            _await_rounds(guest)
            polluxd.kill()
            polluxd.start()
        _await_rounds(guest)
        guest.send("stop")
        guest.wait("@@LOAD-OK", _ROUND_S)
        guest.wait_script()


@pytest.mark.parametrize("transport", ["scsi", "blk"])
def test_stopped_service_finishes_what_is_under_way(polluxd: Polluxd, load: str, transport: str) -> None:
    volume = polluxd.create_volume(64 * MIB)
    attachment = polluxd.attach(volume.volume_id, transport)
    with QemuDirect(load, [disk_of(attachment)]) as guest:
        guest.wait("@@LOAD", 60)
        _await_rounds(guest)
        assert polluxd.stop() == 0
        polluxd.start()
        _await_rounds(guest)
        guest.send("stop")
        guest.wait("@@LOAD-OK", _ROUND_S)
        guest.wait_script()
