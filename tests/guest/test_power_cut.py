"""Power cuts under guests that ask for durable writes and zeros: what they were answered is there afterwards."""

from __future__ import annotations

import os
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from pollux_testing import MIB, disk_of

from guest.faulty_disk import polluxd_on_a_faulty_disk
from guest.machine import VhostUserDisk
from guest.qemu import QemuDirect

_ROUND_S = 60
_RECONNECT_MS = 200

# The guest lives on, as one whose storage alone lost its power: it knows what it was answered.
_LOAD = """
    . /lib/guest.sh
    wait_for_disks 3 || exit 1
    for knob in $(ls /sys/class/scsi_disk/*/cache_type | head -n 1) /sys/block/vda/cache_type; do
        echo 'write through' > $knob
        [ "$(cat $knob)" = 'write through' ] || exit 1
    done
    pollux-guest-durable $(disks | sed s:^:/dev/:) || exit 1
    # A "scsi" that rejects I/O, unlike an "sd", is a target that a scan asked for in vain while the service was away.
    dmesg | grep -vE 'scsi [0-9:]+: rejecting I/O' > /tmp/kernel
    if grep -E 'I/O error|critical .* error|timed out|rejecting I/O|Buffer I/O|is not a head' /tmp/kernel; then
        mark "FAIL the kernel saw errors"
        exit 1
    fi
"""


def _await_round(guest: QemuDirect) -> None:
    """Every part of every disk has been changed, read and found right since this was called."""
    start = guest.console.position
    for _ in range(2):
        found = guest.wait("@@PROGRESS|@@FAIL.*", _ROUND_S, start)[0]
        if found.startswith("@@FAIL"):
            raise guest.console.error(found)
        start = guest.console.position


@pytest.mark.parametrize("cuts", [5, pytest.param(40, marks=pytest.mark.full)])
def test_what_a_guest_was_answered_as_durable_outlives_power_cuts(cuts: int, tmp_path: Path) -> None:
    logs = Path(os.environ.get("POLLUX_TEST_LOGS", str(tmp_path)))
    seed = int(os.environ.get("POLLUX_TEST_SEED", random.randrange(1, 1 << 31)))
    print(f"POLLUX_TEST_SEED={seed}")
    chance = random.Random(seed)
    with (
        # Paths of UNIX sockets are short; those of pytest's folders are not.
        tempfile.TemporaryDirectory(prefix="pollux-") as folder,
        polluxd_on_a_faulty_disk(Path(folder), logs / f"polluxd-power-cut-{cuts}.log") as (polluxd, disk),
    ):
        devices: list[VhostUserDisk] = []
        # Of the scsi disks one stays write-back, and the guest sends FUA.
        for transport in ("scsi", "scsi", "blk"):
            volume = polluxd.create_volume(16 * MIB)
            device = disk_of(polluxd.attach(volume.volume_id, transport))
            devices.append(replace(device, reconnect_ms=_RECONNECT_MS))
        program = Path(os.environ["POLLUX_BUILD"]) / "tests" / "guest" / "pollux-guest-durable"
        with QemuDirect(_LOAD, devices, programs=[str(program)]) as guest:
            for cut in range(cuts):
                _await_round(guest)
                time.sleep(chance.uniform(0, 0.05))
                # Now and then the cache keeps nothing at all.
                disk.cut_power(polluxd, 0 if cut % 4 == 0 else chance.randrange(1, 1 << 31))
            _await_round(guest)
            guest.send("stop")
            guest.wait("@@LOAD-OK", _ROUND_S)
            guest.wait_script()
