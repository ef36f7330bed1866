"""A guest's disk is a Pollux volume: what it writes is there, for this guest, the next, and after restarts."""

from __future__ import annotations

import pytest
from pollux_testing import MIB, Polluxd, disk_of

from guest.machine import Machine
from guest.qemu import QemuDirect
from guest.uml import Uml

_GUESTS = [
    pytest.param(Uml, "scsi", marks=pytest.mark.smoke),
    pytest.param(Uml, "blk", marks=pytest.mark.smoke),
    (QemuDirect, "scsi"),
    (QemuDirect, "blk"),
]


@pytest.mark.parametrize(("kind", "transport"), _GUESTS)
def test_what_a_guest_flushed_is_read_by_later_guests_and_after_kill(
    polluxd: Polluxd, check_disk: str, kind: type[Uml] | type[QemuDirect], transport: str
) -> None:
    volume = polluxd.create_volume(64 * MIB)
    attachment = polluxd.attach(volume.volume_id, transport)
    variables = {"WANT_SIZE": str(64 * MIB), "WANT_SERIAL": attachment.serial}

    def guest(phase: str) -> Machine:
        return kind(check_disk, [disk_of(attachment)], variables={**variables, "PHASE": phase})

    with guest("write") as first:
        first.wait_script()
        # A disk that cannot discard would pass the rest of the script.
        first.wait("@@DISCARD")
        first.wait_end()
    with guest("again") as second:
        second.wait_script()
    polluxd.kill()
    polluxd.start()
    # Nobody attached again: the socket came back by itself.
    with guest("again") as third:
        third.wait_script()


@pytest.mark.parametrize("transport", ["scsi", "blk"])
def test_discarding_gives_space_back_to_the_pool(polluxd: Polluxd, transport: str) -> None:
    volume = polluxd.create_volume(64 * MIB)
    attachment = polluxd.attach(volume.volume_id, transport)
    script = """
        . /lib/guest.sh
        wait_for_disks 1 || exit 1
        dev=/dev/$(disks)
        dd if=/dev/urandom of=$dev bs=1M count=32 conv=notrunc,fsync || exit 1
        mark WRITTEN
        read -r _
        blkdiscard $dev || exit 1
    """
    with Uml(script, [disk_of(attachment)]) as guest:
        guest.wait("@@WRITTEN")
        assert polluxd.describe_volume(volume.volume_id).mapped_bytes >= 32 * MIB
        guest.send("go")
        guest.wait_script()
    assert polluxd.describe_volume(volume.volume_id).mapped_bytes == 0


@pytest.mark.parametrize("transport", ["scsi", "blk"])
def test_a_read_only_attachment_refuses_writes(polluxd: Polluxd, transport: str) -> None:
    volume = polluxd.create_volume(16 * MIB)
    attachment = polluxd.attach(volume.volume_id, transport, read_only=True)
    script = """
        . /lib/guest.sh
        wait_for_disks 1 || exit 1
        dev=$(disks)
        mark "RO $(cat /sys/block/$dev/ro)"
        # The block layer of the guest refuses by itself; make it ask the device.
        blockdev --setrw /dev/$dev
        if dd if=/dev/urandom of=/dev/$dev bs=64k count=1 oflag=direct; then exit 1; fi
        dd if=/dev/$dev of=/dev/null bs=64k count=1 iflag=direct
    """
    with Uml(script, [disk_of(attachment)]) as guest:
        assert guest.wait(r"@@RO (\d)")[1] == "1"
        guest.wait_script()
    assert polluxd.describe_volume(volume.volume_id).mapped_bytes == 0


def test_a_guest_with_two_scsi_volumes_finds_each_by_its_serial(polluxd: Polluxd) -> None:
    volumes = [polluxd.create_volume(size * MIB) for size in (16, 32)]
    attachments = [polluxd.attach(volume.volume_id, "scsi", client="two") for volume in volumes]
    assert attachments[0].socket_path == attachments[1].socket_path
    script = """
        . /lib/guest.sh
        wait_for_disks 2 || exit 1
        for dev in $(disks); do mark "DISK serial=$(disk_serial $dev) size=$(disk_size $dev)"; done
    """
    with Uml(script, [disk_of(attachments[0])]) as guest:
        guest.wait_script()
        found = {match[1]: int(match[2]) for match in guest.console.find_all(r"@@DISK serial=(\S+) size=(\d+)")}
    assert found == {volume.volume_id: volume.size_bytes for volume in volumes}
