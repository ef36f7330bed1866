"""SCSI persistent reservations: shared by the guests of one volume, and still there after the service died."""

from __future__ import annotations

import pytest
from pollux_testing import MIB, Polluxd, disk_of

from guest.machine import VhostUserDisk
from guest.uml import Uml

_PRELUDE = """
    . /lib/guest.sh
    wait_for_disks 1 || exit 1
    dev=/dev/$(disks)
    pr() { sg_persist "$@" $dev 2>&1 | sed 's/^/|/' > /dev/console; }
    written() { dd if=/dev/zero of=$dev bs=4096 count=1 oflag=direct 2> /dev/null && mark WRITTEN || mark REFUSED; }
"""
# Write exclusive, registrants only. Type codes: SPC-5 6.16.3.4.
_RESERVE = """
    pr --out --register --param-sark=0xabc $APTPL
    pr --out --reserve --param-rk=0xabc --prout-type=5
    written
"""
_LOOK = """
    pr --in --read-keys
    pr --in --read-reservation
    written
"""


@pytest.mark.parametrize("aptpl", ["", "--param-aptpl"])
def test_a_reservation_binds_other_guests_and_outlives_the_service(polluxd: Polluxd, aptpl: str) -> None:
    volume = polluxd.create_volume(16 * MIB)
    holder, other = (disk_of(polluxd.attach(volume.volume_id, "scsi", client=name)) for name in ("holder", "other"))

    def guest(disk: VhostUserDisk, script: str) -> str:
        with Uml(_PRELUDE + script, [disk], variables={"APTPL": aptpl}, programs=["sg_persist"]) as machine:
            machine.wait_script()
            return machine.console.text()

    assert "@@WRITTEN" in guest(holder, _RESERVE)
    assert "@@REFUSED" in guest(other, _LOOK)
    for _ in range(2):
        polluxd.kill()
        polluxd.start()
        seen = guest(other, _LOOK)
        assert "@@REFUSED" in seen
        assert "0xabc" in seen
        assert "Write Exclusive, registrants only" in seen
        assert "@@WRITTEN" in guest(holder, _LOOK)
    # What the holder gives up is given up for good.
    guest(holder, "pr --out --register --param-rk=0xabc --param-sark=0")
    polluxd.kill()
    polluxd.start()
    seen = guest(other, _LOOK)
    assert "0xabc" not in seen
    assert "@@WRITTEN" in seen
