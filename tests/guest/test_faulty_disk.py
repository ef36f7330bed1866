"""A pool's device fails and works again under a running guest: nobody restarts anything, nothing answered is lost.

The device's cache is volatile, and a flush that fails loses all of it: that is what most kernels do after a failed
write-back, while the next flush succeeds.
"""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pollux_testing import Polluxd, disk_of

from guest.faulty_disk import FaultyDisk, polluxd_on_a_faulty_disk
from guest.machine import VhostUserDisk
from guest.qemu import QemuDirect
from guest.timing import wait_until

_ANSWER_S = 30
_RECONNECT_MS = 200
# docs/on-disk-format.md: what one leaf maps, and an error of reading it concerns; clusters are of 256 KiB.
_LEAF_BYTES = 254 * 256 << 10
_VOLUME_BYTES = 2 * _LEAF_BYTES
_CHUNK = 64 << 10
_CHUNKS_A_CLUSTER = 4
_RIGHT, _WRONG, _ERROR = 0, 1, 2

# A shell on the console: each command's status is its answer. Data passes by the page cache.
_SHELL = """
    . /lib/guest.sh
    wait_for_disks 2 || exit 1
    # fill DISK CHUNK CHARACTER, holds DISK CHUNK CHARACTER: 64 KiB each; "0" stands for zeros.
    pattern() {
        if [ "$1" = 0 ]; then head -c 65536 /dev/zero; else head -c 65536 /dev/zero | tr '\\\\0' "$1"; fi
    }
    fill() {
        pattern $3 > /tmp/pattern
        dd if=/tmp/pattern of=/dev/$1 bs=65536 seek=$2 count=1 oflag=direct conv=notrunc || return 2
    }
    holds() {
        dd if=/dev/$1 of=/tmp/read bs=65536 skip=$2 count=1 iflag=direct || return 2
        pattern $3 | cmp - /tmp/read || return 1
    }
    flush() { dd if=/dev/null of=/dev/$1 conv=notrunc,fsync || return 2; }
    # cache DISK MODE: "write" goes before it.
    cache() {
        knob=/sys/block/$1/cache_type
        [ -e $knob ] || knob=$(ls /sys/block/$1/device/scsi_disk/*/cache_type)
        echo "write $2" > $knob || return 2
    }
    mark SHELL $(disks)
    while read -r line; do
        $line 2> /tmp/said
        status=$?
        [ $status = 0 ] || cat /tmp/said
        mark "ANSWER $status"
    done
"""


class _GuestDisk:
    """A disk as processes in the guest see it. `chunk` counts pieces of 64 KiB."""

    def __init__(self, guest: QemuDirect, name: str) -> None:
        self._guest = guest
        self.name = name

    def fill(self, chunk: int, character: str) -> bool:
        return self._ask(f"fill {self.name} {chunk} {character}") == _RIGHT

    def read(self, chunk: int, character: str) -> int:
        """_RIGHT when the chunk is full of `character` ("0": zeros), else _WRONG; _ERROR when reading fails."""
        return self._ask(f"holds {self.name} {chunk} {character}")

    def flush(self) -> bool:
        return self._ask(f"flush {self.name}") == _RIGHT

    def set_cache(self, mode: str) -> bool:
        """To write "back" or "through"."""
        return self._ask(f"cache {self.name} {mode}") == _RIGHT

    def _ask(self, command: str) -> int:
        start = self._guest.console.position
        self._guest.send(command)
        return int(self._guest.wait(r"@@ANSWER (\d+)", _ANSWER_S, start)[1])


class _Rig:
    def __init__(self, polluxd: Polluxd, device: FaultyDisk, disks: list[_GuestDisk], volumes: list[str]) -> None:
        self.polluxd = polluxd
        self.device = device
        self.disks = disks
        self.volumes = volumes
        self._chunks_used = 0

    def restart(self) -> None:
        """What was read of maps is forgotten."""
        assert self.polluxd.stop() == 0
        self.polluxd.start()

    def fresh_chunks(self) -> tuple[int, int]:
        """Two that no other test uses, in clusters of their own."""
        self._chunks_used += 2 * _CHUNKS_A_CLUSTER
        return self._chunks_used, self._chunks_used + _CHUNKS_A_CLUSTER

    def lose_writes(self, chunk: int, told: _GuestDisk) -> None:
        """Each disk loses what it wrote to the chunk after "a", which is durable. One is told, by its own flush."""
        for disk in self.disks:
            assert disk.fill(chunk, "a")
            assert disk.flush()
            assert disk.fill(chunk, "b")
        self.device.fail("flush", count=1)
        assert not told.flush()
        self.recovers()

    def failure(self) -> str:
        return self.polluxd.describe_pool().failure or ""

    def recovers(self) -> None:
        wait_until(lambda: not self.failure(), _ANSWER_S, "the pool takes changes again")

    def fails_once(self, what: Callable[[], int]) -> None:
        """One read of the device fails, and with it `what` alone: the next attempt is right."""
        before = self.device.failed()
        self.device.fail("read", count=1)
        assert what() == _ERROR
        assert self.device.failed() == before + 1
        assert what() == _RIGHT


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Rig]:
    """One guest and one service for all tests: what they survive, they survive together."""
    logs = Path(os.environ.get("POLLUX_TEST_LOGS") or tmp_path_factory.getbasetemp())
    with (
        # Paths of UNIX sockets are short; those of pytest's folders are not.
        tempfile.TemporaryDirectory(prefix="pollux-") as folder,
        polluxd_on_a_faulty_disk(Path(folder), logs / "polluxd-faulty-disk.log") as (polluxd, device),
    ):
        devices: list[VhostUserDisk] = []
        volumes: list[str] = []
        for transport in ("scsi", "blk"):
            volume = polluxd.create_volume(_VOLUME_BYTES)
            volumes.append(volume.volume_id)
            attached = disk_of(polluxd.attach(volume.volume_id, transport))
            devices.append(replace(attached, reconnect_ms=_RECONNECT_MS))
        with QemuDirect(_SHELL, devices) as guest:
            names = guest.wait("@@SHELL (.+)", 60)[1].split()
            yield _Rig(polluxd, device, [_GuestDisk(guest, name) for name in names], volumes)


def test_a_read_that_fails_once_is_answered_once(rig: _Rig) -> None:
    written, _ = rig.fresh_chunks()
    never_written = _LEAF_BYTES // _CHUNK - 1
    for disk in rig.disks:
        assert disk.fill(written, "a")
        assert disk.flush()
    # The map is what cannot be read, for written places and for those that never were.
    for chunk, character in ((written, "a"), (never_written, "0")):
        rig.restart()
        for disk in rig.disks:
            rig.fails_once(lambda disk=disk, chunk=chunk, character=character: disk.read(chunk, character))
            assert disk.read(written, "a") == _RIGHT
            assert disk.read(never_written, "0") == _RIGHT
    # The map is known: it is the data.
    for disk in rig.disks:
        rig.fails_once(lambda disk=disk: disk.read(written, "a"))
        assert disk.fill(written, "b")
        assert disk.read(written, "b") == _RIGHT
    assert not rig.failure()


def test_a_path_to_the_device_that_comes_back_is_waited_for(rig: _Rig) -> None:
    chunk, _ = rig.fresh_chunks()
    for disk in rig.disks:
        assert disk.fill(chunk, "a")
        assert disk.flush()
    for operation in ("read", "write"):
        for error in (errno.ENOLINK, errno.ETIMEDOUT):
            # A SCSI guest is told and repeats its command; for virtio-blk, which has no words for it, the service does.
            for disk in rig.disks:
                before = rig.device.failed()
                rig.device.fail(operation, error, count=2)
                assert disk.fill(chunk, "a") if operation == "write" else disk.read(chunk, "a") == _RIGHT
                assert rig.device.failed() == before + 2
    assert not rig.failure()


def test_a_flush_that_fails_is_told_to_each_disk_that_may_have_lost_writes(rig: _Rig) -> None:
    first = rig.disks[0]
    old, new = rig.fresh_chunks()
    for disk in rig.disks:
        assert disk.fill(old, "a")
        assert disk.flush()
        # In place, and in the device's cache alone.
        assert disk.fill(old, "b")
    rig.device.fail("flush")
    assert not first.flush()
    assert "flush" in rig.failure()
    for disk in rig.disks:
        assert disk.read(new, "0") == _RIGHT
        assert disk.read(old, "a") == _RIGHT
        assert not disk.fill(new, "c")
        assert not disk.flush()
    rig.device.work()
    rig.recovers()
    for disk in rig.disks:
        # What was answered as durable.
        assert disk.read(old, "a") == _RIGHT
        assert disk.fill(new, "c")
        # The first flush that the device does tells nobody that what was lost is there.
        wait_until(disk.flush, _ANSWER_S, "flushes succeed")
    rig.device.cut_power(rig.polluxd, 0)
    for disk in rig.disks:
        assert disk.read(old, "a") == _RIGHT
        assert disk.read(new, "c") == _RIGHT


def test_no_flush_succeeds_after_one_of_another_disk_has_failed_and_lost_writes(rig: _Rig) -> None:
    first, second = rig.disks
    old, _ = rig.fresh_chunks()
    rig.lose_writes(old, told=first)
    # The device says that all is well, and the write is gone.
    assert not second.flush()
    assert second.read(old, "a") == _RIGHT
    for disk in rig.disks:
        assert disk.fill(old, "c")
        assert disk.flush()
    rig.device.cut_power(rig.polluxd, 0)
    for disk in rig.disks:
        assert disk.read(old, "c") == _RIGHT


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "stopped"])
def test_a_disk_that_was_not_told_of_a_loss_is_told_after_a_restart_of_the_service(rig: _Rig, killed: bool) -> None:
    first, second = rig.disks
    old, _ = rig.fresh_chunks()
    rig.lose_writes(old, told=first)
    if killed:
        rig.polluxd.kill()
        rig.polluxd.start()
    else:
        rig.restart()
    # Its write is gone, and the device says that all is well.
    assert not second.flush()
    assert second.read(old, "a") == _RIGHT
    # Each has been told, once.
    for character in "cd":
        for disk in rig.disks:
            assert disk.fill(old, character)
            assert disk.flush()
        rig.restart()
    rig.device.cut_power(rig.polluxd, 0)
    for disk in rig.disks:
        assert disk.read(old, "d") == _RIGHT


# Debian's package is for Debian's Python, whatever comes first on the path.
_FLUSH = """
import nbd, sys
client = nbd.NBD()
client.connect_uri(sys.argv[1])
try:
    client.flush()
except nbd.Error:
    print("error")
else:
    print("flushed")
"""


def _flush_from_outside(url: str) -> bool:
    done = subprocess.run(
        ["/usr/bin/python3", "-c", _FLUSH, url], check=True, capture_output=True, text=True, timeout=_ANSWER_S
    )
    return done.stdout.strip() == "flushed"


def test_a_reader_beside_the_guest_leaves_it_to_the_guest_to_be_told_of_a_loss(rig: _Rig) -> None:
    told, untold = rig.disks
    old, _ = rig.fresh_chunks()
    rig.lose_writes(old, told)
    with rig.polluxd.image_of(rig.volumes[1]) as url:
        for _ in range(2):
            assert not _flush_from_outside(url)
        assert not untold.flush()
        assert _flush_from_outside(url)
    assert untold.flush()


def test_turning_the_cache_off_leaves_it_to_the_next_flush_to_tell_of_a_loss(rig: _Rig) -> None:
    for told, untold in (rig.disks, rig.disks[::-1]):
        old, _ = rig.fresh_chunks()
        rig.lose_writes(old, told)
        # It would mean that all that was written before is durable.
        untold.set_cache("through")
        assert not untold.flush()
        untold.set_cache("back")
        assert untold.fill(old, "c")
        assert untold.flush()
        assert untold.read(old, "c") == _RIGHT


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def test_a_journal_that_cannot_be_written_stops_changes_until_it_can(rig: _Rig, error: int) -> None:
    old, new = rig.fresh_chunks()
    for disk in rig.disks:
        assert disk.fill(old, "a")
        assert disk.flush()
    rig.device.fail("write", error, journal=True)
    for disk in rig.disks:
        # The first is answered before it is in the journal, as any write may be until a flush.
        assert not (disk.fill(new, "b") and disk.flush())
    assert "journal" in rig.failure()
    for disk in rig.disks:
        assert disk.read(old, "a") == _RIGHT
        # Of another leaf.
        assert disk.read(_LEAF_BYTES // _CHUNK, "0") == _RIGHT
    rig.device.work()
    rig.recovers()
    for disk in rig.disks:
        assert disk.read(old, "a") == _RIGHT
        assert disk.fill(new, "c")
        # Of a write of the journal that failed nobody knows whether its flush did; without space nothing was done.
        # The pool has tried it again since, in vain.
        if error != errno.ENOSPC:
            assert not disk.flush()
        assert disk.flush()
    rig.device.cut_power(rig.polluxd, 0)
    for disk in rig.disks:
        assert disk.read(old, "a") == _RIGHT
        assert disk.read(new, "c") == _RIGHT
