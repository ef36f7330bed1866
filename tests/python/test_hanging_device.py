"""A device that answers no more: the service still ends within its limit, and says what it waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest.timing import Deadline
from pollux.client import Client
from pollux.rpc import ttypes as rpc

from python.services import Service, new_id, volume_spec

MIB = 1 << 20
POOL = "hanging"
LIMIT_S = 5  # the smallest that the configuration allows
# Beyond the limit.
_GRACE_S = 20

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="/dev/fuse cannot be used")


class Device:
    """A file of 64 MiB whose reads and writes another process answers, until that is stopped."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "device"
        self.path.touch()
        image = folder / "image"
        with image.open("wb") as backing:
            backing.truncate(64 * MIB)
        self._server = subprocess.Popen(["nbdfuse", self.path, "--socket-activation", "qemu-nbd", "--persistent",
                                         "--format=raw", image])
        deadline = Deadline(30)
        while self.path.stat().st_size == 0:
            assert self._server.poll() is None
            assert not deadline.expired()
            time.sleep(0.02)

    def hang(self) -> None:
        self._server.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._server.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.go_on()
        self._server.terminate()
        self._server.wait()


@pytest.fixture
def device(own_service: Service, tmp_path: Path) -> Iterator[Device]:
    """With a pool of `own_service` on it, whose stop may take LIMIT_S."""
    device = Device(tmp_path)
    try:
        polluxd = own_service.polluxd
        assert polluxd.stop() == 0
        text = polluxd.config.read_text()
        polluxd.config.write_text(text.replace("[service]\n", f"[service]\nstop_timeout_s = {LIMIT_S}\n", 1))
        polluxd.start()
        own_service.client().pool_create(rpc.PoolSpec(
            pool_id=new_id(), name=POOL, cluster_bytes=64 << 10,
            bdev=rpc.BdevSpec(kind=rpc.BdevKind.URING, path=str(device.path))))
        yield device
        device.go_on()
        polluxd.stop()
    finally:
        device.close()


def open_volume(client: Client, volume: str) -> str:
    opened = client.data_open(rpc.DataSocketSpec(socket_id=new_id(), volume_id=volume))
    return f"nbd+unix:///{opened.export_name}?socket={opened.path}"


def terminate(service: Service, device: Device) -> float:
    """After how many seconds it gave up.

    The kernel may keep a process that has ended until the device has answered what it had taken already, so the device
    goes on then.
    """
    given_up = "stop: not finished after"
    # The log of an earlier run may be in the same file.
    before = service.log_text().count(given_up)
    begin = time.monotonic()
    os.kill(service.polluxd.pid, signal.SIGTERM)
    while service.log_text().count(given_up) == before:
        assert time.monotonic() - begin < LIMIT_S + _GRACE_S
        time.sleep(0.02)
    took_s = time.monotonic() - begin
    device.go_on()
    assert service.polluxd.wait_for_end() == 1
    return took_s


@pytest.mark.parametrize("waits_for", ["requests of data sockets", "the pools' last writes"])
def test_a_stop_ends_within_its_limit_though_a_device_hangs(
    own_service: Service, device: Device, waits_for: str
) -> None:
    client = own_service.client()
    volume = client.volume_create(POOL, volume_spec(new_id(), 16 * MIB)).volume_id
    url = open_volume(client, volume)
    subprocess.run(["qemu-io", "-f", "raw", "-c", "write -P 0x5a 0 1M", "-c", "flush", url], check=True,
                   stdout=subprocess.DEVNULL)
    if waits_for == "the pools' last writes":
        client.data_close(url.partition("nbd-")[2].partition(".sock")[0])
        device.hang()
        took_s = terminate(own_service, device)
    else:
        device.hang()
        with subprocess.Popen(["qemu-io", "-f", "raw", "-c", "write -P 0x11 2M 1M", url], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL) as writer:
            took_s = terminate(own_service, device)
            writer.kill()
    assert LIMIT_S <= took_s < LIMIT_S + _GRACE_S
    assert f"still waiting for {waits_for}" in own_service.log_text()

    own_service.polluxd.start()
    url = open_volume(own_service.client(), volume)
    read = subprocess.run(["qemu-io", "-f", "raw", "-c", "read -P 0x5a 0 1M", url], capture_output=True, text=True,
                          check=True)
    assert "verification failed" not in read.stdout
