"""polluxd dies or restarts under a guest's I/O: the guest sees a pause, never an error or a wrong byte.

One guest has four disks, of both transports and both ring formats, and keeps 16 requests in flight on each. What a
front end takes its rings to be when the service ends by SIGTERM is not what it is after SIGKILL: both, in turns.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from pollux.rpc.ttypes import AttachmentInfo
from pollux_testing import MIB, Polluxd, disk_of

from guest.machine import VhostUserDisk
from guest.qemu import QemuDirect

_PROGRESS_S = 60
# As a live system has it: QEMU is back before the service's first request is answered.
_RECONNECT_MS = 200

_BIND_AGAIN = """
. /lib/guest.sh
wait_for_disks 4 || { mark "FAIL no disks"; exit 1; }
# The drivers begin their rings anew, as a guest does that reboots.
for disk in $(disks); do
	dd if=/dev/$disk of=/dev/null bs=65536 count=16 2> /dev/null
done
for driver in virtio_scsi virtio_blk; do
	for device in /sys/bus/virtio/drivers/$driver/virtio*; do
		echo ${device##*/} > /sys/bus/virtio/drivers/$driver/unbind
		echo ${device##*/} > /sys/bus/virtio/drivers/$driver/bind
	done
done
wait_for_disks 4 || { mark "FAIL no disks after the drivers were bound again"; exit 1; }
# VIRTIO 1.2 6: bit 34, packed virtqueues; the file has a character a bit.
packed=$(cut -c35 /sys/bus/virtio/devices/virtio*/features | grep -c 1)
[ "$packed" = 2 ] || { mark "FAIL $packed devices have packed virtqueues"; exit 1; }
"""

# Blocks of a pattern that names the disk, the block and the generation, read back at random and whole at the end.
_OWN_LOAD = """
pollux-guest-load $(disks | sed s:^:/dev/:) || exit 1
"""

# fio writes 64 blocks at random, reads them back and compares their checksums, and so on; one job that fails ends all.
# It says nothing while it goes on, so that progress is what the kernel counts: 64 more answers of each disk.
_FIO_LOAD = """
exec 3<&0
( read -r stop <&3; : > /tmp/stop ) &
set --
for disk in $(disks); do
	set -- "$@" --name=$disk --filename=/dev/$disk
done
fio --thread --ioengine=libaio --direct=1 --iodepth=16 --bs=4k --size=8m --rw=randwrite --randrepeat=0 --time_based \\
	--runtime=100000 --verify=crc32c --verify_backlog=64 --verify_fatal=1 --exitall_on_error \\
	"$@" > /tmp/fio 2>&1 &
fio=$!
# answers DISK: requests that the disk has answered (Documentation/block/stat.rst: reads and writes).
answers() {
	read -r reads _ _ _ writes _ < /sys/block/$1/stat
	echo $((reads + writes))
}
mark LOAD
line=0
while [ ! -e /tmp/stop ]; do
	for disk in $(disks); do
		enough=$(($(answers $disk) + 64))
		while [ $(answers $disk) -lt $enough ]; do
			kill -0 $fio 2> /dev/null || { cat /tmp/fio; mark "FAIL fio ended"; exit 1; }
			sleep 0.05
		done
	done
	line=$((line + 1))
	mark "PROGRESS $line"
done
kill -INT $fio
wait $fio
cat /tmp/fio
[ "$(grep -c 'err= 0' /tmp/fio)" = 4 ] || { mark "FAIL fio saw an error"; exit 1; }
grep -E 'verify|bad ' /tmp/fio && { mark "FAIL fio read a wrong block"; exit 1; }
mark LOAD-OK
"""

_KERNEL_SAW = """
# What the block layer says when a request fails or the device is reset, and the driver when an answer is not its own.
# A "scsi" that rejects I/O, unlike an "sd", is a target that a scan asked for in vain while the service was away.
dmesg | grep -vE 'scsi [0-9:]+: rejecting I/O' > /tmp/kernel
if grep -E 'I/O error|critical .* error|timed out|rejecting I/O|Buffer I/O|is not a head' /tmp/kernel; then
	mark "FAIL the kernel saw errors"
	exit 1
fi
"""


@dataclass
class _Disk:
    attachment: AttachmentInfo
    packed: bool

    @property
    def device(self) -> VhostUserDisk:
        return replace(disk_of(self.attachment), reconnect_ms=_RECONNECT_MS, packed=self.packed)

    def attach_again(self, polluxd: Polluxd) -> None:
        """Detach it and attach it again at once: the front end comes back to the same socket."""
        polluxd.detach(self.attachment.attachment_id)
        was = self.attachment
        self.attachment = polluxd.attach(was.volume_id, "blk", client=was.client_id, queues=was.queues)
        assert self.attachment.socket_path == was.socket_path


@pytest.fixture
def four_disks(polluxd: Polluxd) -> list[_Disk]:
    return [
        _Disk(polluxd.attach(polluxd.create_volume(16 * MIB).volume_id, transport), packed)
        for transport in ("scsi", "blk")
        for packed in (False, True)
    ]


def _load_guest(disks: list[_Disk], load: str) -> QemuDirect:
    own = Path(os.environ["POLLUX_BUILD"]) / "tests" / "guest" / "pollux-guest-load"
    script, program = {"own": (_OWN_LOAD, str(own)), "fio": (_FIO_LOAD, "fio")}[load]
    devices = [disk.device for disk in disks]
    return QemuDirect(_BIND_AGAIN + script + _KERNEL_SAW, devices, memory_mb=768, programs=[program])


def _await_progress(guest: QemuDirect) -> None:
    """Every disk answers requests that were made after this was called."""
    start = guest.console.position
    for _ in range(2):
        found = guest.wait("@@PROGRESS|@@FAIL.*", _PROGRESS_S, start)[0]
        if found.startswith("@@FAIL"):
            raise guest.console.error(found)
        start = guest.console.position


@pytest.mark.parametrize(
    ("load", "times"), [("own", 10), ("fio", 10), pytest.param("fio", 200, marks=pytest.mark.full)]
)
def test_service_that_ends_costs_a_guest_only_a_pause(
    polluxd: Polluxd, four_disks: list[_Disk], load: str, times: int
) -> None:
    with _load_guest(four_disks, load) as guest:
        guest.wait("@@LOAD", _PROGRESS_S)
        for _ in range(times):
            _await_progress(guest)
            assert polluxd.stop() == 0
            polluxd.start()
            _await_progress(guest)
            polluxd.kill()
            polluxd.start()
        # A blk device goes and comes back alone, while the service and the other disks go on.
        for _ in range(max(1, times // 10)):
            _await_progress(guest)
            for disk in four_disks[2:]:
                disk.attach_again(polluxd)
        _await_progress(guest)
        guest.send("stop")
        guest.wait("@@LOAD-OK", _PROGRESS_S)
        guest.wait_script()
