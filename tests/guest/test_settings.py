"""What a guest has chosen for its disk holds until the disk is detached, whatever happens to polluxd."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from pollux_testing import MIB, Polluxd, disk_of

from guest.machine import VhostUserDisk
from guest.qemu import QemuDirect
from guest.uml import Uml

_WRITES = 20

# The page cache is cleared of the writes that prepare the place: what is counted later are the 20 alone.
_CHOOSES = """
    . /lib/guest.sh
    wait_for_disks 1 || exit 1
    disk=$(disks)
    knob=$(ls /sys/class/scsi_disk/*/cache_type /sys/block/$disk/cache_type 2> /dev/null | head -n 1)
    dd if=/dev/zero of=/dev/$disk bs=65536 count=16 conv=fsync 2> /dev/null || exit 1
    echo 'write through' > $knob || exit 1
    mark CHOSEN $(cat $knob)
    read -r go
    i=0
    while [ $i -lt $WRITES ]; do
        dd if=/dev/urandom of=/dev/$disk bs=4096 count=1 seek=$i conv=notrunc,fsync 2> /dev/null || exit 1
        i=$((i + 1))
    done
    mark WRITTEN
"""
_LOOKS = """
    . /lib/guest.sh
    wait_for_disks 1 || exit 1
    mark FOUND $(cat /sys/class/scsi_disk/*/cache_type /sys/block/$(disks)/cache_type 2> /dev/null)
"""


@contextmanager
def _polluxd_on_a_counting_device(folder: Path, log: Path) -> Iterator[tuple[Polluxd, Path]]:
    """A polluxd whose pool is a loop device, and the file in which the kernel counts that device's requests."""
    with ExitStack() as undo:
        image = folder / "device.img"
        image.touch()
        os.truncate(image, 256 * MIB)
        device = subprocess.run(
            ["losetup", "--find", "--show", str(image)], check=True, capture_output=True, text=True
        ).stdout.strip()
        undo.callback(subprocess.run, ["losetup", "--detach", device], check=True)
        service = Polluxd(folder, log)
        undo.callback(service.close)
        service.start()
        service.create_pool(device=device)
        yield service, Path("/sys/block") / Path(device).name / "stat"


def _flushes(stat: Path) -> int:
    # Documentation/block/stat.rst of the kernel: field 16 counts flushes. Writes that are durable by themselves are
    # followed by one, because the device has a cache.
    return int(stat.read_text().split()[15])


def _found(disk: VhostUserDisk) -> str:
    """The cache mode that a guest is told which has not seen the disk before."""
    with Uml(_LOOKS, [disk]) as guest:
        guest.wait_script()
        found: str = guest.wait("@@FOUND ([a-z ]+)")[1]
        return found


@pytest.mark.parametrize("transport", ["scsi", "blk"])
def test_write_through_outlives_the_service_and_ends_with_the_attachment(transport: str, tmp_path: Path) -> None:
    logs = Path(os.environ.get("POLLUX_TEST_LOGS", str(tmp_path)))
    # Paths of UNIX sockets are short; those of pytest's folders are not.
    with (
        tempfile.TemporaryDirectory(prefix="pollux-") as folder,
        _polluxd_on_a_counting_device(Path(folder), logs / f"polluxd-settings-{transport}.log") as (polluxd, stat),
    ):
        volume = polluxd.create_volume(16 * MIB)
        attachment = polluxd.attach(volume.volume_id, transport, client="guest")
        with QemuDirect(_CHOOSES, [disk_of(attachment)], variables={"WRITES": str(_WRITES)}) as guest:
            guest.wait("@@CHOSEN write through", 60)
            polluxd.kill()
            polluxd.start()
            assert polluxd.stop() == 0
            polluxd.start()
            before = _flushes(stat)
            guest.send("go")
            guest.wait("@@WRITTEN", 60)
            assert _flushes(stat) - before >= _WRITES
            guest.wait_script()
        assert _found(disk_of(attachment)) == "write through"
        polluxd.detach(attachment.attachment_id)
        again = polluxd.attach(volume.volume_id, transport, client="guest")
        assert _found(disk_of(again)) == "write back"
