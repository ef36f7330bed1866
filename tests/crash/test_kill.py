"""polluxd is killed under a load that verifies, with control operations in flight.

Nothing that was answered is lost, no guest sees an error or a wrong byte, and the checker finds nothing wrong with what
the death left behind.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import time
from pathlib import Path

import pytest
from guest.timing import Deadline
from pollux_testing import MIB, POOL, Polluxd

from crash.operations import Operations

_FULL = os.environ.get("POLLUX_TEST_LEVEL") == "full"
# The long run kills at least a hundred times in all.
_KILLS = 60 if _FULL else 5
_SIZE = 32 * MIB
# How long the service runs between two kills, drawn from the seed.
_SHORTEST_S, _LONGEST_S = 0.3, 1.2
# The load is told when to end; this is for a test that cannot tell it any more.
_LOAD_S = 3600


def _seed() -> int:
    seed = int(os.environ.get("POLLUX_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
    print(f"POLLUX_TEST_SEED={seed}")
    return seed


def _fsck(polluxd: Polluxd) -> None:
    """The pool as the kill left it has no error, and looking at it changes nothing."""
    image = polluxd.folder / "pool.img"
    program = os.environ.get("POLLUXD") or str(Path(os.environ["POLLUX_BUILD"]) / "service" / "polluxd")
    result = subprocess.run([program, "--fsck", str(image)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, f"--fsck ended with {result.returncode}:\n{result.stdout}{result.stderr}"


def _load(socket: str, transport: str, target: int, seed: int) -> subprocess.Popen[str]:
    program = Path(os.environ["POLLUX_BUILD"]) / "tests" / "initiator" / "pollux-initiator"
    where = ["--blk"] if transport == "blk" else ["--scsi", "--target", str(target)]
    return subprocess.Popen(
        [str(program), "--socket", socket, *where, "--queues", "2", "--depth", "16", "--verify", "--reconnect",
         "--flush-every", "50", "--seconds", str(_LOAD_S), "--seed", str(seed)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def _contents(polluxd: Polluxd, volume_id: str) -> str:
    with polluxd.image_of(volume_id) as url:
        copy = polluxd.folder / "copy.raw"
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "raw", url, str(copy)], check=True, timeout=300)
        return hashlib.sha256(copy.read_bytes()).hexdigest()


def _await_front_end(polluxd: Polluxd, attachment_id: str) -> None:
    """A kill in the middle of the handshake is the front end's to survive, and has tests of its own."""
    deadline = Deadline(60)
    while not polluxd.is_connected(attachment_id):
        assert not deadline.expired(), "the front end did not come back"
        time.sleep(0.02)


@pytest.mark.parametrize("transport", ["blk", "scsi"])
def test_a_killed_service_loses_nothing_that_was_answered(polluxd: Polluxd, transport: str) -> None:
    seed = _seed()
    draw = random.Random(seed)
    volume = polluxd.create_volume(_SIZE)
    attachment = polluxd.attach(volume.volume_id, transport)
    load = _load(attachment.socket_path, transport, attachment.target or 0, seed)
    operations = Operations(polluxd, volume.volume_id, _SIZE, seed)
    operations.start()
    early = None
    kills = 0
    try:
        while kills < _KILLS:
            assert load.poll() is None, load.communicate()[0]
            _await_front_end(polluxd, attachment.attachment_id)
            time.sleep(draw.uniform(_SHORTEST_S, _LONGEST_S))
            polluxd.kill()
            kills += 1
            _fsck(polluxd)
            polluxd.start()
            operations.verify()
            if early is None:
                early = polluxd.snapshot(volume.volume_id)
                operations.adopt(early)
                first_contents = _contents(polluxd, early.volume_id)
        _await_front_end(polluxd, attachment.attachment_id)
        time.sleep(_LONGEST_S)
        load.terminate()
        output = load.communicate(timeout=120)[0]
        assert load.returncode == 0, output
    finally:
        if load.poll() is None:
            load.kill()
            load.communicate()
        operations.stop()
    assert operations.done > kills
    operations.verify()
    assert early is not None
    assert _contents(polluxd, early.volume_id) == first_contents
    print(f"{kills} kills, {operations.done} operations; {output.strip().splitlines()[-1]}")

    polluxd.detach(attachment.attachment_id)
    operations.clear()
    polluxd.delete(volume.volume_id)
    deadline = Deadline(60)
    while polluxd.describe_pool().allocated_bytes != 0:
        assert not deadline.expired(), f"space of deleted volumes did not come back: {polluxd.describe_pool()}"
        time.sleep(0.02)
    assert polluxd.stop() == 0
    _fsck(polluxd)
    polluxd.start()
    assert polluxd.describe_pool().name == POOL
