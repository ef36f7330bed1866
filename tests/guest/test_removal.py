"""A disk is detached while its device answers nothing: its guest loses no request, and nobody else waits."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pollux.rpc.ttypes import ErrorCode, PolluxError
from pollux_testing import MIB, Polluxd, disk_of

from guest.qemu import QemuDirect
from guest.timing import wait_until

# The kernel's own time limit of a command would end what this test is about on a slow machine.
_WRITES = """
    . /lib/guest.sh
    wait_for_disks 1 || exit 1
    disk=$(disks)
    echo 600 > /sys/block/$disk/device/timeout || exit 1
    writes() {
        i=0
        while [ ! -e /tmp/stop ]; do
            dd if=/dev/zero of=/dev/$disk bs=4096 count=1 seek=$((i % 64)) oflag=direct 2> /dev/null || {
                mark FAILED write $i
                return 1
            }
            i=$((i + 1))
            mark WROTE $i
        done
    }
    writes &
    read -r stop
    touch /tmp/stop
    wait $! && mark ENDED
"""


class _FileSystem:
    """One of its own for a pool's file. While it is frozen, no write to it ends."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "mount"
        self._frozen = False

    def freeze(self) -> None:
        subprocess.run(["fsfreeze", "--freeze", str(self.root)], check=True)
        self._frozen = True

    def thaw(self) -> None:
        if self._frozen:
            subprocess.run(["fsfreeze", "--unfreeze", str(self.root)], check=True)
        self._frozen = False


@contextmanager
def _polluxd_on_a_file_system(folder: Path, log: Path) -> Iterator[tuple[Polluxd, _FileSystem]]:
    with ExitStack() as undo:
        system = _FileSystem(folder)
        system.root.mkdir()
        image = folder / "file-system.img"
        image.touch()
        os.truncate(image, 512 * MIB)
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(system.root)], check=True)
        undo.callback(subprocess.run, ["umount", str(system.root)], check=True)
        service = Polluxd(folder, log, pool_mb=256)
        undo.callback(service.close)
        undo.callback(system.thaw)
        service.start()
        service.create_pool(folder=system.root)
        yield service, system


def _writes_stand_still(guest: QemuDirect) -> bool:
    before = guest.console.text().count("@@WROTE")
    time.sleep(2)
    return guest.console.text().count("@@WROTE") == before


def test_a_detach_that_waits_for_its_device_costs_only_time(tmp_path: Path) -> None:
    logs = Path(os.environ.get("POLLUX_TEST_LOGS", str(tmp_path)))
    with (
        tempfile.TemporaryDirectory(prefix="pollux-") as folder,
        _polluxd_on_a_file_system(Path(folder), logs / "polluxd-removal.log") as (polluxd, system),
    ):
        stuck, other = (polluxd.create_volume(16 * MIB) for _ in range(2))
        attachment = polluxd.attach(stuck.volume_id, "scsi", client="guest")
        refusals: list[PolluxError | None] = []

        def detach() -> None:
            refusals.append(polluxd.try_detach(attachment.attachment_id))

        with QemuDirect(_WRITES, [disk_of(attachment)]) as guest:
            guest.wait("@@WROTE", 60)
            system.freeze()
            wait_until(lambda: _writes_stand_still(guest), 60, "the guest's writes stand still")
            detaching = threading.Thread(target=detach)
            detaching.start()
            time.sleep(2)  # It is under way now, and waits some 20 s.
            for transport in ("scsi", "blk"):
                for client in ("guest", "neighbour"):
                    polluxd.detach(polluxd.attach(other.volume_id, transport, client=client).attachment_id)
            assert detaching.is_alive(), "others waited for the detach"
            detaching.join()
            assert [refusal and refusal.code for refusal in refusals] == [ErrorCode.BUSY]
            assert "@@FAILED" not in guest.console.text()
            start = guest.console.position
            system.thaw()
            guest.wait("@@WROTE", 60, start)
            guest.send("stop")
            guest.wait("@@ENDED", 60)
            assert "@@FAILED" not in guest.console.text()
        polluxd.detach(attachment.attachment_id)
