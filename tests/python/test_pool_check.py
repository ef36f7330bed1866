"""Checks and repairs of pools over the control port, of pools in files that are damaged on purpose."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pollux import errors
from pollux.rpc import ttypes as rpc

from python.pool_image import PoolImage
from python.services import POOL, Service, new_id, volume_spec

MIB = 1 << 20
IN_ORDER = "0 lost, 0 doubly used, 0 leaked, 0 damaged"


class FilePool:
    """A pool in a file of a service, with a volume and its snapshot."""

    def __init__(self, service: Service, file: Path) -> None:
        self.service, self.file, self.name = service, file, f"p-{new_id()[:8]}"
        self.client = service.client()
        self.client.pool_create(
            rpc.PoolSpec(pool_id=new_id(), name=self.name, bdev=self.bdev(64 * MIB), cluster_bytes=64 << 10)
        )
        self.volume = self.client.volume_create(self.name, volume_spec(new_id(), 16 * MIB)).volume_id
        self._write(self.volume)
        self.client.snapshot_create(self.volume, new_id(), "kept")

    def bdev(self, size_bytes: int | None = None) -> rpc.BdevSpec:
        return rpc.BdevSpec(kind=rpc.BdevKind.URING, path=str(self.file), size_bytes=size_bytes)

    def _write(self, volume: str) -> None:
        opened = self.client.data_open(rpc.DataSocketSpec(socket_id=new_id(), volume_id=volume))
        url = f"nbd+unix:///{opened.export_name}?socket={opened.path}"
        subprocess.run(["qemu-io", "-f", "raw", "-c", "write -P 0x5a 0 256k", "-c", "flush", url], check=True,
                       capture_output=True)
        self.client.data_close(opened.socket_id)

    def damage(self, how: Callable[[PoolImage], None]) -> None:
        """While it is not open."""
        image = PoolImage(self.file)
        how(image)
        image.save()

    def check(self, *options: str, pool: str | None = None, who: str = "admin") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pollux.cli.main", "pool", "check", pool or self.name, *options],
            env={**os.environ, **self.service.environment(who)}, capture_output=True, text=True, timeout=120,
            check=False)

    def is_open(self) -> bool:
        return self.name in {pool.name for pool in self.client.pool_list()}


@pytest.fixture
def pool(service: Service, tmp_path: Path) -> FilePool:
    return FilePool(service, tmp_path / "pool.img")


@pytest.fixture
def own_pool(own_service: Service, tmp_path: Path) -> FilePool:
    """Of a service that the test may kill."""
    return FilePool(own_service, tmp_path / "pool.img")


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout.splitlines()[-1]


def test_a_pool_in_order_is_open_again_afterwards_and_the_report_is_that_of_fsck(pool: FilePool) -> None:
    checked = pool.check()
    assert (checked.returncode, last_line(checked)) == (0, IN_ORDER), checked.stderr
    assert pool.is_open()
    assert pool.client.volume_describe(pool.volume).mapped_bytes == 256 << 10
    pool.client.pool_export(pool.name)
    program = os.environ.get("POLLUXD") or Path(os.environ["POLLUX_BUILD"]) / "service" / "polluxd"
    by_hand = subprocess.run([program, "--fsck", str(pool.file)], capture_output=True, text=True,
                             check=False)
    assert by_hand.stdout == checked.stdout
    # The pool of no service, by its device.
    assert pool.check(pool=str(pool.file)).stdout == checked.stdout
    assert not pool.is_open()


def test_leaked_space_is_reported_and_a_repair_gives_it_back(pool: FilePool) -> None:
    free_bytes = pool.client.pool_describe(pool.name).free_bytes
    pool.client.pool_export(pool.name)
    pool.damage(PoolImage.leak_a_cluster)
    pool.client.pool_import(pool.bdev())
    assert pool.client.pool_describe(pool.name).free_bytes == free_bytes - (64 << 10)
    found = pool.check()
    assert (found.returncode, last_line(found)) == (1, "0 lost, 0 doubly used, 1 leaked, 0 damaged")
    assert "counts 1 references and has 0" in found.stdout
    repaired = pool.check("--repair")
    assert (repaired.returncode, last_line(repaired)) == (0, f"{last_line(found)}; 1 repaired")
    assert last_line(pool.check()) == IN_ORDER
    assert pool.client.pool_describe(pool.name).free_bytes == free_bytes


def test_a_pool_that_did_not_open_is_repaired_by_name_and_opens(own_pool: FilePool) -> None:
    own_pool.client.pool_export(own_pool.name)
    own_pool.client.pool_import(own_pool.bdev())
    own_pool.service.polluxd.stop()
    own_pool.damage(PoolImage.count_shared_leaves_low)
    own_pool.service.polluxd.start()
    assert not own_pool.is_open()
    found = own_pool.check()
    assert found.returncode == 1
    assert "1 lost" in found.stdout
    assert "is not open" in found.stderr
    repaired = own_pool.check("--repair")
    assert (repaired.returncode, repaired.stderr) == (0, "")
    assert "1 lost, 0 doubly used, 0 leaked, 0 damaged; 1 repaired" in repaired.stdout
    assert own_pool.is_open()
    assert own_pool.client.volume_describe(own_pool.volume).mapped_bytes == 256 << 10


def _without_owner(image: bytes) -> bytes:
    """Without the page that says who has the pool, or had it last."""
    return image[: 16 << 10] + image[20 << 10 :]


def test_rotten_metadata_is_refused_and_hurts_nothing_else(own_pool: FilePool) -> None:
    own_pool.service.polluxd.stop()
    own_pool.damage(PoolImage.spoil_reference_counts)
    before = _without_owner(own_pool.file.read_bytes())
    own_pool.service.polluxd.start()
    refused = own_pool.check("--repair")
    assert refused.returncode == 1
    assert "no valid copy of page 0 of the reference counts" in refused.stderr
    assert not own_pool.is_open()
    assert _without_owner(own_pool.file.read_bytes()) == before
    # The volume may be in the pool that is not open.
    with pytest.raises(errors.Retry):
        own_pool.service.client("reader", deadline_ms=500).volume_describe(own_pool.volume)


def test_another_pool_at_the_recorded_path_is_left_alone(own_pool: FilePool, tmp_path: Path) -> None:
    other = FilePool(own_pool.service, tmp_path / "other.img")
    own_pool.service.polluxd.stop()
    other.damage(PoolImage.leak_a_cluster)
    other.file.replace(own_pool.file)
    before = own_pool.file.read_bytes()
    own_pool.service.polluxd.start()
    refused = own_pool.check("--repair")
    assert refused.returncode == 1
    assert f"holds the pool {other.name}" in refused.stderr
    assert own_pool.file.read_bytes() == before


def test_a_pool_in_use_is_not_closed(pool: FilePool) -> None:
    opened = pool.client.data_open(rpc.DataSocketSpec(socket_id=new_id(), volume_id=pool.volume))
    refused = pool.check("--repair")
    assert refused.returncode == 4
    assert pool.volume in refused.stderr
    assert "close their data sockets" in refused.stderr
    assert pool.is_open()
    pool.client.data_close(opened.socket_id)
    assert pool.check().returncode == 0


def test_a_pool_in_memory_is_not_closed(pool: FilePool, service: Service) -> None:
    refused = pool.check(pool=POOL)
    assert refused.returncode == 1
    assert "in memory" in refused.stderr
    assert POOL in {one.name for one in service.client().pool_list()}


@pytest.mark.parametrize("who", ["cinder", "compute", "reader"])
def test_only_an_admin_may(pool: FilePool, who: str) -> None:
    assert pool.check(who=who).returncode == 6


def test_a_request_that_is_repeated_is_one_check(pool: FilePool) -> None:
    check_id = new_id()
    pool.client.pool_check(pool.name, check_id)
    again = pool.client.pool_check(pool.name, check_id)
    assert again.check_id == check_id
    with pytest.raises(errors.Exists):
        pool.client.pool_check(pool.name, check_id, repair=True)
    assert [job.kind for job in pool.client.job_list() if job.job_id == check_id] == ["check"]


def test_a_service_that_is_killed_during_a_check_opens_the_pool_at_its_next_start(own_pool: FilePool) -> None:
    for _ in range(3):
        own_pool.client.pool_check(own_pool.name, new_id(), repair=True)
        own_pool.service.polluxd.kill()
        own_pool.service.polluxd.start()
        assert own_pool.is_open()
        assert own_pool.client.volume_describe(own_pool.volume).mapped_bytes == 256 << 10
