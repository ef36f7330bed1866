"""Where a pool's space is on the file or device under it: freed space goes back, metadata has its room."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pollux import errors
from pollux.rpc import ttypes as rpc

from python.services import Service, new_id, volume_spec

MIB = 1 << 20
DATA = 48 * MIB
_PATIENCE_S = 60

root = pytest.mark.skipif(os.geteuid() != 0, reason="loop devices and mounts need root")


class Pool:
    """A pool of a service on a file or device."""

    def __init__(self, service: Service, path: Path, size: int | None, *options: str) -> None:
        self.service, self.path, self.name = service, path, f"p-{new_id()[:8]}"
        self.client = service.client()
        where = ("--device", str(path)) if size is None else ("--file", str(path), "--size", str(size))
        done = self.ctl("create", self.name, *where, "--cluster", "64K", *options)
        assert done.returncode == 0, done.stderr

    def ctl(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "pollux.cli.main", "pool", verb, *arguments],
                              env={**os.environ, **self.service.environment()}, capture_output=True, text=True,
                              timeout=120, check=False)

    def volume(self, size: int = 2 * DATA) -> str:
        return self.client.volume_create(self.name, volume_spec(new_id(), size)).volume_id

    def fill(self, volume: str, length: int = DATA) -> subprocess.CompletedProcess[str]:
        opened = self.client.data_open(rpc.DataSocketSpec(socket_id=new_id(), volume_id=volume))
        url = f"nbd+unix:///{opened.export_name}?socket={opened.path}"
        try:
            return subprocess.run(["qemu-io", "-f", "raw", "-c", f"write -P 0x5a 0 {length}", "-c", "flush", url],
                                  capture_output=True, text=True, check=False)
        finally:
            self.client.data_close(opened.socket_id)

    def info(self) -> rpc.PoolInfo:
        return self.client.pool_describe(self.name)

    def close(self) -> None:
        self.client.pool_export(self.name)


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {_PATIENCE_S} s: {what}"
        time.sleep(0.05)


@pytest.fixture
def pool(service: Service, tmp_path: Path) -> Iterator[Pool]:
    pool = Pool(service, tmp_path / "pool.img", 256 * MIB)
    yield pool
    pool.close()


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A loop device, and the file under it."""
    file = tmp_path / "loop.img"
    with file.open("wb") as made:
        made.truncate(256 * MIB)
    device = subprocess.run(["losetup", "--find", "--show", str(file)], capture_output=True, text=True, check=True)
    yield Path(device.stdout.strip()), file
    subprocess.run(["losetup", "--detach", device.stdout.strip()], check=True)


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_deleted_data_leaves_the_pools_file(pool: Pool, service: Service) -> None:
    empty = allocated(pool.path)
    volume, kept = pool.volume(), pool.volume()
    pool.fill(volume).check_returncode()
    pool.fill(kept, 2 * MIB).check_returncode()
    assert allocated(pool.path) >= empty + DATA
    pool.client.volume_delete(volume)
    wait_until(lambda: allocated(pool.path) < empty + DATA // 4, "the deleted volume's space leaves the file")
    wait_until(lambda: pool.info().discard_pending_bytes == 0, "nothing is left to discard")
    assert pool.info().discarded_bytes >= DATA
    assert service.client().stats().discarded_bytes >= DATA
    assert pool.ctl("check", pool.name).returncode == 0


def test_discard_can_be_off_and_a_trim_gives_back_what_it_left(service: Service, tmp_path: Path) -> None:
    pool = Pool(service, tmp_path / "pool.img", 256 * MIB, "--discard", "off")
    empty = allocated(pool.path)
    volume = pool.volume()
    pool.fill(volume).check_returncode()
    free = pool.info().free_bytes
    pool.client.volume_delete(volume)
    wait_until(lambda: pool.info().free_bytes >= free + DATA, "the space is free")
    wait_until(lambda: not [job for job in pool.client.job_list() if job.kind == "delete"], "the delete ends")
    info = pool.info()
    assert (info.discard, info.discarded_bytes, info.discard_pending_bytes) == (False, 0, 0)
    assert allocated(pool.path) >= empty + DATA
    # It is the pool's, not the service's.
    pool.close()
    assert not pool.client.pool_import(rpc.BdevSpec(kind=rpc.BdevKind.URING, path=str(pool.path))).discard
    trimmed = pool.ctl("trim", pool.name, "--wait")
    assert trimmed.returncode == 0, trimmed.stderr
    assert allocated(pool.path) < empty + DATA // 4
    switched = pool.ctl("discard", pool.name, "on")
    assert switched.returncode == 0, switched.stderr
    assert pool.info().discard
    pool.close()


@root
def test_a_block_device_is_told_what_is_free(service: Service, loop: tuple[Path, Path]) -> None:
    device, file = loop
    pool = Pool(service, device, None)
    empty = allocated(file)
    volume = pool.volume()
    pool.fill(volume).check_returncode()
    subprocess.run(["sync", str(file)], check=True)
    assert allocated(file) >= empty + DATA
    pool.client.volume_delete(volume)
    wait_until(lambda: allocated(file) < empty + DATA // 4, "the loop device discards")
    pool.close()


def test_a_pool_can_lie_on_tmpfs(service: Service) -> None:
    folder = Path("/dev/shm")
    assert "tmpfs" in subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True,
                                     check=True).stdout
    path = folder / f"pollux-{new_id()}.img"
    try:
        pool = Pool(service, path, 128 * MIB)
        empty = allocated(path)
        volume = pool.volume()
        pool.fill(volume).check_returncode()
        assert pool.ctl("check", pool.name).returncode == 0
        pool.client.volume_delete(volume)
        wait_until(lambda: allocated(path) < empty + DATA // 4, "the deleted volume's memory is free again")
        pool.close()
    finally:
        path.unlink(missing_ok=True)


def test_metadata_has_its_room_in_the_file(service: Service, tmp_path: Path) -> None:
    pool = Pool(service, tmp_path / "pool.img", 256 * MIB)
    for _ in range(60):
        pool.volume(MIB)
    metadata = pool.info().metadata_bytes
    pool.close()
    assert allocated(pool.path) >= metadata
    # A pool that was made without, or copied: its room comes when it is opened. This is in the middle of the journal.
    subprocess.run(["fallocate", "--punch-hole", "--offset", str(MIB), "--length", str(2 * MIB), str(pool.path)],
                   check=True)
    assert allocated(pool.path) < metadata
    pool.client.pool_import(rpc.BdevSpec(kind=rpc.BdevKind.URING, path=str(pool.path)))
    assert allocated(pool.path) >= metadata
    pool.close()


def _snapshot_for_ever(pool: Pool, volume: str) -> None:
    while True:
        pool.client.snapshot_create(volume, new_id(), f"s-{new_id()}")


@root
def test_a_full_file_system_under_the_pool_stops_no_change_of_it(service: Service, small_tmpfs: Path) -> None:
    pool = Pool(service, small_tmpfs / "pool.img", 256 * MIB)
    volume = pool.volume()
    pool.fill(volume, MIB).check_returncode()
    with (small_tmpfs / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(b"x" * 4096)
    assert pool.fill(volume).returncode != 0
    # The journal goes round its ring several times, with a checkpoint each.
    for _ in range(40):
        for _ in range(10):
            pool.client.volume_set_qos(volume, rpc.QosLimits(total_iops=100_000))
        pool.client.snapshot_create(volume, new_id(), f"s-{new_id()}")
    with pytest.raises(errors.NoSpace):
        _snapshot_for_ever(pool, volume)
    (small_tmpfs / "ballast").unlink()
    # The first request that finds no room has it looked for again.
    wait_until(lambda: pool.fill(volume, 4 * MIB).returncode == 0, "the pool has room again")
    assert pool.ctl("check", pool.name).returncode == 0
    pool.close()
