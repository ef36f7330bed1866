"""Volumes come, grow and go in a running guest."""

from __future__ import annotations

from pathlib import Path

import pytest
from pollux_testing import MIB, Polluxd, disk_of

from guest.qemu import QemuBoot

_BOOT_S = 60


def test_scsi_volumes_come_grow_and_go_through_the_event_queue(polluxd: Polluxd, boot_image: Path) -> None:
    boot = polluxd.create_volume(64 * MIB)
    polluxd.write_image(boot.volume_id, boot_image)
    controller = polluxd.attach(boot.volume_id, "scsi", client="vm")
    data = polluxd.create_volume(32 * MIB)
    with QemuBoot([disk_of(controller, boot=True)]) as guest:
        guest.wait("@@POLLUX-BOOTED", _BOOT_S)
        # QEMU is told nothing from here on: the service speaks to the guest itself.
        attachment = polluxd.attach(data.volume_id, "scsi", client="vm")
        added = guest.wait(r"@@DISK-ADDED dev=(\S+) size=(\d+) serial=(\S+)")
        assert added.groups() == ("sdb", str(32 * MIB), data.volume_id)
        verified = guest.wait(r"@@DISK-VERIFIED dev=sdb sha256=(\S+)")

        polluxd.extend(data.volume_id, 48 * MIB)
        assert guest.wait(r"@@DISK-RESIZED dev=sdb size=(\d+)")[1] == str(48 * MIB)

        polluxd.detach(attachment.attachment_id)
        guest.wait("@@DISK-REMOVED dev=sdb")

        again = guest.console.position
        polluxd.attach(data.volume_id, "scsi", client="vm")
        came_back = guest.wait(r"@@DISK-ADDED dev=sdb size=(\d+) serial=\S+ sha256=(\S+)", start=again)
        assert came_back.groups() == (str(48 * MIB), verified[1])

        copy = polluxd.clone(polluxd.snapshot(data.volume_id).volume_id)
        polluxd.attach(copy.volume_id, "scsi", client="vm")
        cloned = guest.wait(rf"@@DISK-ADDED .* serial={copy.volume_id} sha256=(\S+)", start=again)
        assert cloned[1] == verified[1]


def test_blk_volume_is_plugged_grown_and_unplugged(polluxd: Polluxd, boot_image: Path) -> None:
    boot = polluxd.create_volume(64 * MIB)
    polluxd.write_image(boot.volume_id, boot_image)
    data = polluxd.create_volume(32 * MIB)
    with QemuBoot([disk_of(polluxd.attach(boot.volume_id, "blk"), boot=True)]) as guest:
        guest.wait("@@POLLUX-BOOTED", _BOOT_S)
        attachment = polluxd.attach(data.volume_id, "blk")
        guest.plug(disk_of(attachment), "data", port=0)
        added = guest.wait(r"@@DISK-ADDED dev=(\S+) size=(\d+) serial=(\S+)")
        # VIRTIO_BLK_T_GET_ID has room for twenty characters (VIRTIO 1.2 5.2.6).
        assert added.groups() == ("vdb", str(32 * MIB), data.volume_id[:20])
        guest.wait("@@DISK-VERIFIED dev=vdb")
        polluxd.extend(data.volume_id, 48 * MIB)
        assert guest.wait(r"@@DISK-RESIZED dev=vdb size=(\d+)")[1] == str(48 * MIB)
        guest.unplug("data")
        guest.wait("@@DISK-REMOVED dev=vdb")
        polluxd.detach(attachment.attachment_id)


@pytest.mark.parametrize("times", [10])
def test_scsi_hot_plug_works_over_and_over(polluxd: Polluxd, boot_image: Path, times: int) -> None:
    boot = polluxd.create_volume(64 * MIB)
    polluxd.write_image(boot.volume_id, boot_image)
    data = polluxd.create_volume(16 * MIB)
    with QemuBoot([disk_of(polluxd.attach(boot.volume_id, "scsi", client="vm"), boot=True)]) as guest:
        guest.wait("@@POLLUX-BOOTED", _BOOT_S)
        # The guest writes to an empty disk and reads it back; the disk stays until that is done.
        first = polluxd.attach(data.volume_id, "scsi", client="vm")
        written = guest.wait(r"@@DISK-VERIFIED dev=sdb sha256=(\S+)")[1]
        start = guest.console.position
        polluxd.detach(first.attachment_id)
        guest.wait("@@DISK-REMOVED dev=sdb", start=start)
        for _ in range(times):
            start = guest.console.position
            attachment = polluxd.attach(data.volume_id, "scsi", client="vm")
            assert guest.wait(r"@@DISK-ADDED dev=sdb .* sha256=(\S+)", start=start)[1] == written
            polluxd.detach(attachment.attachment_id)
            guest.wait("@@DISK-REMOVED dev=sdb", start=start)
