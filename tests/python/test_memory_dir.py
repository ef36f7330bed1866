"""What a write to a place never written before leaves when it was answered and not flushed: it outlives the service in
`memory_dir`, not the host. The clients are libnbd and qemu-io."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from pollux import errors
from pollux.rpc import ttypes as rpc

from python.services import Service, new_id
from python.test_pool_check import FilePool

_BYTES = 64 << 10
_FIRST_OFFSET = 1 << 20
# Waits for its end with the connection open: qemu-io flushes when it closes an image.
_WRITE = """
import sys
import nbd
handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
handle.pwrite(b"w" * int(sys.argv[3]), int(sys.argv[2]))
print("written", flush=True)
sys.stdin.read()
"""


class _Pool(FilePool):
    def open(self) -> tuple[str, str]:
        """A data socket's id and URL; it ends with the service at the latest."""
        opened = self.client.data_open(rpc.DataSocketSpec(socket_id=new_id(), volume_id=self.volume))
        return opened.socket_id, f"nbd+unix:///{opened.export_name}?socket={opened.path}"

    def write_and(self, end: str, offset: int) -> None:
        """Write, without a flush, and `end` ("kill", "cut_power") the service at once."""
        _, url = self.open()
        command = ["/usr/bin/python3", "-c", _WRITE, url, str(offset), str(_BYTES)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "written\n"
            getattr(self.service.polluxd, end)()

    def holds(self, offset: int, byte: int) -> bool:
        socket_id, url = self.open()
        command = ["qemu-io", "-f", "raw", "-c", f"read -P {byte} {offset} {_BYTES}", url]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        self.client.data_close(socket_id)
        assert f"read {_BYTES}/{_BYTES} bytes" in done.stdout
        return "Pattern verification failed" not in done.stdout

    def queue(self) -> Path:
        (found,) = self.service.polluxd.memory.iterdir()
        return found


@pytest.fixture
def pool(own_service: Service, tmp_path: Path) -> _Pool:
    return _Pool(own_service, tmp_path / "pool.img")


def test_an_answered_write_outlives_the_service(pool: _Pool) -> None:
    for number in range(3):
        offset = _FIRST_OFFSET + number * _BYTES
        pool.write_and("kill", offset)
        pool.service.polluxd.start()
        assert pool.holds(offset, ord("w"))
    assert pool.service.polluxd.stop() == 0
    assert not list(pool.service.polluxd.memory.iterdir())
    pool.service.polluxd.start()
    assert pool.holds(_FIRST_OFFSET, ord("w"))


def test_it_was_in_memory_alone(pool: _Pool) -> None:
    # On a busy machine what was queued may be on the device before the service has ended.
    for number in range(5):
        offset = _FIRST_OFFSET + number * _BYTES
        pool.write_and("cut_power", offset)
        pool.service.polluxd.start()
        if pool.holds(offset, 0):
            return
        assert pool.holds(offset, ord("w"))
    pytest.fail("every write was on the device at once")


def test_without_a_tmpfs_an_answer_waits_for_the_device(pool: _Pool, tmp_path: Path) -> None:
    polluxd = pool.service.polluxd
    assert polluxd.stop() == 0
    polluxd.config.write_text(polluxd.config.read_text().replace(str(polluxd.memory), str(tmp_path)))
    polluxd.start()
    assert "first writes wait for its device" in pool.service.log_text()
    pool.write_and("kill", _FIRST_OFFSET)
    polluxd.start()
    assert pool.holds(_FIRST_OFFSET, ord("w"))


def test_a_queue_that_cannot_be_understood_keeps_its_pool_closed(pool: _Pool) -> None:
    polluxd = pool.service.polluxd
    pool.write_and("kill", _FIRST_OFFSET)
    queue = pool.queue()
    size = queue.stat().st_size
    os.truncate(queue, size + 4096)
    polluxd.start()
    with pytest.raises(errors.Retry):
        pool.service.client("reader", deadline_ms=500).pool_describe(pool.name)
    assert "what was answered before the service ended cannot be read" in pool.service.log_text()
    os.truncate(queue, size)
    pool.client.pool_import(pool.bdev())
    assert pool.holds(_FIRST_OFFSET, ord("w"))
