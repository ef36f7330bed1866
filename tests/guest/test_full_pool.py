"""A pool without room fails a guest's write as that, keeps what is there readable, and lets the guest go on later."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from pollux_testing import MIB, Polluxd, disk_of

from guest.machine import Machine
from guest.timing import wait_until
from guest.uml import Uml

_SIZE = 256 * MIB
_KEPT_MB = 16

# $KEPT: how much is written first, in MiB, and compared later past the page cache. $REST: the rest of the disk, in MiB.
_SCRIPT = """
    . /lib/guest.sh
    wait_for_disks 1 || exit 1
    dev=/dev/$(disks)
    dd if=/dev/urandom of=/tmp/kept bs=1M count=$KEPT || exit 1
    dd if=/tmp/kept of=$dev bs=1M oflag=direct conv=notrunc,fsync || exit 1
    fill() {
        dd if=/dev/zero bs=1M count=$REST | tr '\\0' x |
            dd of=$dev bs=1M iflag=fullblock oflag=direct seek=$KEPT conv=notrunc
    }
    mark READY
    read -r _
    if fill 2> /tmp/error; then mark ROOM; exit 1; fi
    mark "FULL $(grep -v records /tmp/error)"
    dmesg | grep -E "critical|Sense|I/O error" | head -n 8
    dd if=$dev bs=1M count=$KEPT iflag=direct 2> /dev/null | cmp - /tmp/kept || exit 1
    mark READ
    read -r _
    fill || exit 1
    dd if=$dev bs=1M count=$KEPT iflag=direct 2> /dev/null | cmp - /tmp/kept || exit 1
"""


def _make_room_by_a_delete(polluxd: Polluxd, filler: str) -> None:
    polluxd.delete(filler)


def _make_room_by_a_larger_device(polluxd: Polluxd, filler: str) -> None:
    device = polluxd.folder / "pool.img"
    os.truncate(device, device.stat().st_size + 2 * _SIZE)


@pytest.mark.parametrize("transport", ["scsi", "blk"])
@pytest.mark.parametrize("make_room", [_make_room_by_a_delete, _make_room_by_a_larger_device])
def test_a_guest_that_finds_the_pool_full_goes_on_when_there_is_room(
    polluxd: Polluxd, transport: str, make_room: Callable[[Polluxd, str], None]
) -> None:
    volume = polluxd.create_volume(_SIZE)
    attachment = polluxd.attach(volume.volume_id, transport)
    filler = polluxd.create_volume(_free(polluxd) // (64 * MIB) * 64 * MIB - 64 * MIB, thick=True)
    assert _free(polluxd) < _SIZE
    variables = {"KEPT": str(_KEPT_MB), "REST": str(_SIZE // MIB - _KEPT_MB)}
    with Uml(_SCRIPT, [disk_of(attachment)], variables=variables) as guest:
        guest.wait("@@READY", 60)
        guest.send("go")
        said = guest.wait(r"@@FULL (.*)", 60)[1]
        _check_sense(guest, transport, said)
        guest.wait("@@READ", 60)
        make_room(polluxd, filler.volume_id)
        # Deleting frees in the background, and devices are looked at now and then.
        wait_until(lambda: _free(polluxd) > _SIZE, 60, "the pool has room again")
        guest.send("go")
        guest.wait_script(120)


def _free(polluxd: Polluxd) -> int:
    pool = polluxd.describe_pool()
    free: int = pool.free_bytes
    return free


def _check_sense(guest: Machine, transport: str, said: str) -> None:
    """Linux makes ENOSPC of SPACE ALLOCATION FAILED WRITE PROTECT (SBC-4 4.7.3.6); virtio-blk has no status for it."""
    assert ("No space left on device" if transport == "scsi" else "Input/output error") in said
    if transport == "scsi":
        guest.wait("critical space allocation error")
