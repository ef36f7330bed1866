"""A guest boots from a Pollux volume by firmware, and the volume keeps what it wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from pollux_testing import MIB, Polluxd, disk_of

from guest.qemu import QemuBoot

_BOOT_S = 60


@pytest.mark.parametrize("transport", ["scsi", "blk"])
@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_guest_boots_and_its_writes_last(polluxd: Polluxd, boot_image: Path, transport: str, firmware: str) -> None:
    volume = polluxd.create_volume(64 * MIB)
    polluxd.write_image(volume.volume_id, boot_image)
    attachment = polluxd.attach(volume.volume_id, transport)
    device = "sda" if transport == "scsi" else "vda"
    for boots in (1, 2):
        with QemuBoot([disk_of(attachment, boot=True)], firmware=firmware) as guest:
            booted = guest.wait(r"@@POLLUX-BOOTED dev=(\S+) boots=(\d+) fw=(\S+)", _BOOT_S)
            assert booted.groups() == (f"/dev/{device}", str(boots), firmware)
            guest.power_button()
            guest.wait("@@POLLUX-POWEROFF")
            guest.wait_end()


def test_clone_of_a_snapshot_boots_while_the_original_runs(polluxd: Polluxd, boot_image: Path) -> None:
    original = polluxd.create_volume(64 * MIB)
    polluxd.write_image(original.volume_id, boot_image)
    snapshot = polluxd.snapshot(original.volume_id)
    clone = polluxd.clone(snapshot.volume_id)
    disks = [disk_of(polluxd.attach(volume.volume_id, "scsi"), boot=True) for volume in (original, clone)]
    with QemuBoot([disks[0]], name="original") as first, QemuBoot([disks[1]], name="clone") as second:
        # Both count their first boot: neither sees what the other writes.
        first.wait("@@POLLUX-BOOTED .* boots=1 ", _BOOT_S)
        second.wait("@@POLLUX-BOOTED .* boots=1 ", _BOOT_S)
