"""Volumes come, grow and go while a guest cannot be told: it sees all of it once it runs again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from pollux_testing import MIB, Polluxd, disk_of

from guest.qemu import QemuDirect

_BOOT_S = 60
# How long QEMU waits before it connects again: the volumes change before that.
_RECONNECT_MS = 3000


class _Volumes:
    """Two volumes on a guest's scsi controller, one as a blk device, and what the guest is to see of them."""

    def __init__(self, polluxd: Polluxd) -> None:
        self._polluxd = polluxd
        self._sizes: dict[str, int] = {}
        self._kept = self._create()
        self._passing = ""
        self._blk = self._create()
        self.scsi_disk = disk_of(polluxd.attach(self._kept, "scsi", client="vm"))
        self.blk_disk = disk_of(polluxd.attach(self._blk, "blk"))
        self._attach_another()

    def change(self) -> None:
        """One of the scsi volumes goes, another comes, the third and the blk volume grow."""
        self._polluxd.detach(self._passing_attachment)
        del self._sizes[self._passing]
        self._attach_another()
        for volume in (self._kept, self._blk):
            self._sizes[volume] += MIB
            self._polluxd.extend(volume, self._sizes[volume])

    def seen(self) -> str:
        """What the guest says when it has seen all; VIRTIO_BLK_T_GET_ID has room for 20 characters."""
        serials = {volume[:20] if volume == self._blk else volume: size for volume, size in self._sizes.items()}
        return re.escape("@@DISKS " + " ".join(f"{serial}={size}" for serial, size in sorted(serials.items())))

    def _create(self) -> str:
        volume: str = self._polluxd.create_volume(8 * MIB).volume_id
        self._sizes[volume] = 8 * MIB
        return volume

    def _attach_another(self) -> None:
        self._passing = self._create()
        self._passing_attachment = self._polluxd.attach(self._passing, "scsi", client="vm").attachment_id


@contextmanager
def _paused(guest: QemuDirect) -> Iterator[None]:
    guest.qmp.command("stop")
    yield
    guest.qmp.command("cont")


@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=pytest.mark.full)])
def test_guest_sees_what_happened_while_it_could_not_be_told(polluxd: Polluxd, packed: bool) -> None:
    script = (Path(__file__).parent / "scripts" / "report-disks.sh").read_text()
    volumes = _Volumes(polluxd)
    disks = [replace(disk, reconnect_ms=_RECONNECT_MS, packed=packed) for disk in (volumes.scsi_disk, volumes.blk_disk)]
    with QemuDirect(script, disks) as guest:
        guest.wait(volumes.seen(), _BOOT_S)
        with _paused(guest):
            volumes.change()
        guest.wait(volumes.seen(), _BOOT_S)

        # The events die with the process that had to tell them.
        with _paused(guest):
            volumes.change()
            polluxd.kill()
            polluxd.start()
        guest.wait(volumes.seen(), _BOOT_S)

        # Between the service's start and the front end's return.
        polluxd.kill()
        polluxd.start()
        volumes.change()
        guest.wait(volumes.seen(), _BOOT_S)
        assert guest.console.find_all("I/O error") == []
