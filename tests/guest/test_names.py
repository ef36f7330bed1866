"""The names that udev of a real distribution gives to a guest's disks."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

from pollux.rpc.ttypes import ScsiNames
from pollux_testing import MIB, Polluxd, disk_of

from guest.uml import Uml

# The rules are Debian's, and scsi_id is what they run.
_UDEV = ("udevadm", "/lib/udev/scsi_id")
_RULES = Path("/lib/udev/rules.d/60-persistent-storage.rules")
_LISTS = """
    . /lib/guest.sh
    wait_for_disks 3 || exit 1
    mkdir -p /run/udev/rules.d /lib/udev /usr/lib
    echo "$RULES" > /run/udev/rules.d/60-persistent-storage.rules
    ln -s /bin/scsi_id /lib/udev/scsi_id
    ln -s /lib/udev /usr/lib/udev
    # One program by two names.
    ln -s udevadm /bin/systemd-udevd
    /bin/systemd-udevd --daemon || exit 1
    udevadm trigger --action=add --subsystem-match=block && udevadm settle || exit 1
    for name in /dev/disk/by-id/*; do mark NAME ${name##*/} $(readlink $name); done
"""


def _folded(volume_id: str) -> str:
    """The NAA designator of VPD page 83h, docs/scsi-conformance.md: 60 bits of the UUID, locally assigned (3h)."""
    number = uuid.UUID(volume_id).int
    return f"3{((number >> 64) ^ number) & (1 << 60) - 1:015x}"


def _looked_for_by_cinder_csi(volume_id: str) -> set[str]:
    """The names by which Kubernetes' Cinder driver looks for a volume."""
    shown = (volume_id[:20], volume_id)
    of_qemu = {f"virtio-{one}" for one in shown} | {f"scsi-0QEMU_QEMU_HARDDISK_{one}" for one in shown}
    return of_qemu | {f"wwn-0x{volume_id.replace('-', '')}"}


def test_udev_finds_each_disk_by_the_names_that_its_attachment_asks_for(polluxd: Polluxd) -> None:
    own, qemus, blk = (polluxd.create_volume(size_mib * MIB).volume_id for size_mib in (16, 20, 24))
    scsi = polluxd.attach(own, "scsi", client="guest")
    assert polluxd.attach(qemus, "scsi", client="guest", names=ScsiNames.QEMU).socket_path == scsi.socket_path
    disks = [disk_of(scsi), disk_of(polluxd.attach(blk, "blk", client="guest"))]
    with Uml(_LISTS, disks, programs=_UDEV, variables={"RULES": _RULES.read_text()}) as guest:
        guest.wait_script()
        names = dict(re.findall(r"@@NAME (\S+) (\S+)", guest.console.text()))
    by_disk: dict[str, set[str]] = {}
    for name, disk in names.items():
        by_disk.setdefault(disk, set()).add(name)
    of_own = {f"scsi-3{_folded(own)}", f"wwn-0x{_folded(own)}"}
    of_qemus = {f"scsi-0QEMU_QEMU_HARDDISK_{qemus}"}
    of_blk = {f"virtio-{blk[:20]}"}
    assert sorted(map(sorted, by_disk.values())) == sorted(map(sorted, (of_own, of_qemus, of_blk)))
    assert of_qemus <= _looked_for_by_cinder_csi(qemus)
    assert of_blk <= _looked_for_by_cinder_csi(blk)
