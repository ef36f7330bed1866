"""libvirt domains with vhostuser disks, as Nova makes them for the blk transport."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pollux_testing import MIB, Polluxd, disk_of

from guest.libvirtd import Domain, Libvirtd
from guest.timing import wait_until

_BOOT_S = 60


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[Libvirtd]:
    with Libvirtd() as running:
        yield running


def test_domain_boots_attaches_and_detaches_across_a_killed_service(
    polluxd: Polluxd, libvirtd: Libvirtd, boot_image: Path
) -> None:
    boot = polluxd.create_volume(64 * MIB)
    polluxd.write_image(boot.volume_id, boot_image)
    data = polluxd.create_volume(32 * MIB)
    with Domain(libvirtd, disk_of(polluxd.attach(boot.volume_id, "blk"))) as domain:
        domain.wait("@@POLLUX-BOOTED dev=/dev/vda boots=1", _BOOT_S)

        polluxd.kill()
        polluxd.start()

        attachment = polluxd.attach(data.volume_id, "blk")
        disk = disk_of(attachment)
        domain.attach(disk, "vdb")
        domain.wait(f"@@DISK-ADDED dev=vdb size={32 * MIB} serial={data.volume_id[:20]}")
        domain.wait("@@DISK-VERIFIED dev=vdb")
        domain.detach(disk, "vdb")
        domain.wait("@@DISK-REMOVED dev=vdb")
        wait_until(lambda: domain.targets() == ["vda"], 30, "libvirt's end of the detach")
        polluxd.detach(attachment.attachment_id)
        # Powering off writes to the boot disk, on the connection made after the kill.
        domain.shutdown()
        domain.wait("@@POLLUX-POWEROFF")
