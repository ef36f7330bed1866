"""A guest that waits for a limit of its volume does not keep the volume from being taken away."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from guest.timing import stretch, wait_until
from pollux.rpc.ttypes import QosLimits, RequestContext
from pollux_testing import MIB, Polluxd

_IOPS = 10
_DEPTH = 64
# What the limit alone would take for what is in flight is several times as much.
_LONGEST_S = 2.0


def _load(socket: str, transport: str, target: int) -> subprocess.Popen[str]:
    program = Path(os.environ["POLLUX_BUILD"]) / "tests" / "initiator" / "pollux-initiator"
    where = ["--blk"] if transport == "blk" else ["--scsi", "--target", str(target)]
    return subprocess.Popen(
        [str(program), "--socket", socket, *where, "--queues", "2", "--ring", "256", "--depth", str(_DEPTH),
         "--reads", "0", "--seconds", "36000"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def _writes(polluxd: Polluxd, volume_id: str) -> int:
    with polluxd.calls() as service:
        context = RequestContext(request_id="req-limits", deadline_ms=60_000)
        count: int = service.volume_stats(context, volume_id).write_ops
        return count


@pytest.mark.parametrize("transport", ["blk", "scsi"])
def test_a_volume_whose_requests_wait_for_its_limit_is_detached_at_once(polluxd: Polluxd, transport: str) -> None:
    volume = polluxd.create_volume(64 * MIB)
    attachment = polluxd.attach(volume.volume_id, transport)
    with polluxd.calls() as service:
        context = RequestContext(request_id="req-limits", deadline_ms=60_000)
        service.volume_set_qos(context, volume.volume_id, QosLimits(total_iops=_IOPS))
    load = _load(attachment.socket_path, transport, attachment.target or 0)
    try:
        wait_until(lambda: polluxd.is_connected(attachment.attachment_id), 30, "the front end connects")
        # Both queues are full, and the limit lets a few of them go.
        wait_until(lambda: _writes(polluxd, volume.volume_id) >= _IOPS, 30, "writes are answered")
        before = stretch()
        begin = time.monotonic()
        polluxd.detach(attachment.attachment_id)
        took = time.monotonic() - begin
        assert took < _LONGEST_S * max(before, stretch()), f"detaching took {took:.1f} s"
        print(f"{transport}: detached after {took * 1000:.0f} ms")
    finally:
        load.send_signal(signal.SIGKILL)
        load.communicate()
