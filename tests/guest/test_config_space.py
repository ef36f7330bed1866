"""A scsi controller's configuration space: QEMU makes it itself and warns of one that is offered to it, others have it
from the service."""

from __future__ import annotations

from pollux_testing import MIB, Polluxd, disk_of

from guest.qemu import QemuDirect
from guest.uml import Uml


def test_qemu_takes_every_disk_without_a_warning(polluxd: Polluxd) -> None:
    attached = [polluxd.attach(polluxd.create_volume(16 * MIB).volume_id, kind) for kind in ("scsi", "blk")]
    # What is said of the disks is said before the first instruction of a guest.
    with QemuDirect(". /lib/guest.sh; wait_for_disks 2", [disk_of(one) for one in attached], memory_mb=256) as guest:
        guest.wait_script()
        said = guest.console.text()
    assert "warning" not in said, said
    assert "VHOST_USER_PROTOCOL_F_CONFIG" not in said, said


def test_user_mode_linux_reads_the_limits_of_a_scsi_controller(polluxd: Polluxd) -> None:
    attachment = polluxd.attach(polluxd.create_volume(16 * MIB).volume_id, "scsi")
    script = """
        . /lib/guest.sh
        wait_for_disks 1 || exit 1
        mark "LIMITS $(cat /sys/class/scsi_host/host*/cmd_per_lun) $(cat /sys/class/scsi_host/host*/sg_tablesize)"
    """
    with Uml(script, [disk_of(attachment)]) as guest:
        limits = guest.wait(r"@@LIMITS (\d+) (\d+)")
        guest.wait_script()
    # Without the space the driver falls to one command and one segment.
    assert int(limits[1]) >= 64
    assert int(limits[2]) >= 64
