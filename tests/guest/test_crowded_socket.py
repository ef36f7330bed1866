"""A guest has its disk although another process takes every connection to its socket that it can get."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pollux_testing import MIB, Polluxd, disk_of

from guest.qemu import QemuDirect

_GET_FEATURES = struct.pack("<III", 1, 1, 0)


@contextmanager
def _crowd(path: str) -> Iterator[deque[socket.socket]]:
    """Connections that come and go at `path` all the time; what is in it are those that are open."""
    ended = threading.Event()
    connections: deque[socket.socket] = deque()
    # Nothing, half a message, and messages: a front end that never goes on.
    words = itertools.cycle((b"", _GET_FEATURES[:6], _GET_FEATURES * 3))

    def press() -> None:
        while not ended.wait(0.002):
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(path)
                connection.sendall(next(words))
            except BrokenPipeError:
                # It had to leave already.
                pass
            connections.append(connection)
            if len(connections) > 64:
                connections.popleft().close()

    thread = threading.Thread(target=press)
    thread.start()
    try:
        yield connections
    finally:
        ended.set()
        thread.join()
        while connections:
            connections.popleft().close()


@pytest.mark.parametrize("transport", ["scsi", "blk"])
def test_a_guest_boots_and_writes_beside_a_crowd_at_its_socket(polluxd: Polluxd, transport: str) -> None:
    volume = polluxd.create_volume(64 * MIB)
    attachment = polluxd.attach(volume.volume_id, transport)
    script = """
        . /lib/guest.sh
        wait_for_disks 1 || exit 1
        dev=/dev/$(disks)
        dd if=/dev/urandom of=$dev bs=1M count=8 conv=notrunc,fsync || exit 1
        mark WRITTEN
    """
    with _crowd(attachment.socket_path) as crowd:
        while len(crowd) < 64:
            threading.Event().wait(0.01)
        with QemuDirect(script, [disk_of(attachment)]) as guest:
            guest.wait("@@WRITTEN")
            guest.wait_end()
    assert polluxd.describe_volume(volume.volume_id).mapped_bytes >= 8 * MIB
