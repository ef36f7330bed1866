"""A pool in a sparse file of a file system that is full for a while: what failed goes on without a restart."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pollux import errors
from pollux.client import Client
from pollux.rpc import ttypes as rpc

from python.services import Service, new_id, volume_spec

MIB = 1 << 20
POOL = "sparse"
DEADLINE_S = 60


@pytest.fixture
def small_disk(own_service: Service, tmp_path: Path) -> Iterator[Path]:
    """An ext4 of 64 MiB for a pool of `own_service`, which ends with it."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    image, folder = tmp_path / "ext4.img", tmp_path / "ext4"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    mounted = subprocess.run(["mount", "-o", "loop", image, folder], capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr}")
    try:
        yield folder
    finally:
        own_service.polluxd.kill()
        subprocess.run(["umount", folder], check=True)


def fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        for size_bytes in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size_bytes))
                    os.fsync(file.fileno())
    # ext4 keeps some of what is free for itself.
    left = os.statvfs(ballast.parent)
    assert left.f_bavail * left.f_frsize < 4096


class Disk:
    """A volume, as QEMU sees it through a data socket."""

    def __init__(self, client: Client) -> None:
        volume = client.volume_create(POOL, volume_spec(new_id(), 64 * MIB)).volume_id
        self.opened = client.data_open(rpc.DataSocketSpec(socket_id=new_id(), volume_id=volume))

    def does(self, *commands: str) -> bool:
        url = f"nbd+unix:///{self.opened.export_name}?socket={self.opened.path}"
        options = [option for command in commands for option in ("-c", command)]
        done = subprocess.run(["qemu-io", "-f", "raw", *options, url], capture_output=True, text=True, timeout=120,
                              check=False)
        return done.returncode == 0 and "failed" not in done.stdout + done.stderr


def creates(client: Client) -> bool:
    try:
        client.volume_create(POOL, volume_spec(new_id(), MIB))
    except errors.PolluxError:
        return False
    return True


def test_what_failed_for_want_of_space_below_goes_on_without_a_restart(own_service: Service, small_disk: Path) -> None:
    client = own_service.client(deadline_ms=DEADLINE_S * 1000)
    bdev = rpc.BdevSpec(kind=rpc.BdevKind.URING, path=str(small_disk / "pool.img"), size_bytes=256 * MIB)
    client.pool_create(rpc.PoolSpec(pool_id=new_id(), name=POOL, bdev=bdev, cluster_bytes=64 << 10))
    disk = Disk(client)
    assert disk.does("write -P 0x11 0 4M", "flush")
    ballast = small_disk / "ballast"
    fill(ballast)
    # Data has no room. The journal has, and metadata for as long as what was taken ahead for it lasts.
    assert not disk.does("write -P 0x22 8M 1M", "flush")
    made = [creates(client) for _ in range(300)]
    assert made[0]
    assert not client.pool_describe(POOL).failure
    assert disk.does("read -P 0x11 0 4M")
    ballast.unlink()
    end = time.monotonic() + DEADLINE_S
    while not (disk.does("write -P 0x33 8M 1M", "flush") and creates(client)):
        assert time.monotonic() < end, client.pool_describe(POOL).failure
        time.sleep(0.1)
    assert not client.pool_describe(POOL).failure
    assert disk.does("read -P 0x11 0 4M", "read -P 0x33 8M 1M", "write -P 0x44 0 64k", "flush", "read -P 0x44 0 64k")
    # As durable as it was said to be.
    own_service.polluxd.kill()
    own_service.polluxd.start()
    disk.opened = client.data_open(rpc.DataSocketSpec(socket_id=new_id(), volume_id=disk.opened.export_name))
    assert disk.does("read -P 0x44 0 64k", "read -P 0x11 64k 4032k", "read -P 0x33 8M 1M")
