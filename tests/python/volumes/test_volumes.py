"""Volumes, snapshots, clones and statistics."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from guest.faulty_disk import polluxd_on_a_faulty_disk
from guest.timing import wait_until
from pollux import errors
from pollux.rpc import ttypes as rpc
from pollux_testing import MIB

from python.services import GIB, POOL, Service

pytest.importorskip("cinder")


from python.volumes.helpers import (
    a_snapshot,
    a_volume,
    holds,
    make_driver,
    random_file,
    write_to,
)


def test_a_volume_is_created_once_however_often_it_is_asked_for(driver: Any, service: Service, context: Any) -> None:
    made = a_volume(context)
    driver.create_volume(made)
    driver.create_volume(made)
    info = service.client().volume_describe(made.id)
    assert (info.name, info.size_bytes, info.pool) == (made.name, GIB, POOL)
    driver.extend_volume(made, 2)
    assert service.client().volume_describe(made.id).size_bytes == 2 * GIB
    driver.delete_volume(made)
    driver.delete_volume(made)
    with pytest.raises(errors.NotFound):
        service.client().volume_describe(made.id)


def test_thick_volumes_reserve_their_size(driver: Any, service: Service, context: Any) -> None:
    before = service.client().pool_describe(POOL).reserved_bytes
    service.create_pool("thick", 2 * GIB)
    made = a_volume(context, pool="thick", specs={"pollux:provisioning": "thick"})
    driver.create_volume(made)
    assert service.client().pool_describe("thick").reserved_bytes >= GIB
    driver.delete_volume(made)
    service.client().pool_export("thick")
    assert service.client().pool_describe(POOL).reserved_bytes == before


def test_a_snapshot_keeps_what_was_there_and_a_volume_from_it_has_it(
    driver: Any, service: Service, context: Any, volume: Any, tmp_path: Path
) -> None:
    first, second = random_file(tmp_path / "1", 3 * MIB, 1), random_file(tmp_path / "2", 3 * MIB, 2)
    write_to(service, volume.id, first)
    snapshot = a_snapshot(context, volume)
    driver.create_snapshot(snapshot)
    write_to(service, volume.id, second)
    larger = a_volume(context, size=2)
    driver.create_volume_from_snapshot(larger, snapshot)
    copy = a_volume(context)
    driver.create_cloned_volume(copy, volume)

    assert holds(service, larger.id, first)
    assert service.client().volume_describe(larger.id).size_bytes == 2 * GIB
    assert holds(service, copy.id, second)
    assert not holds(service, copy.id, first)
    driver.revert_to_snapshot(context, volume, snapshot)
    assert holds(service, volume.id, first)

    driver.delete_snapshot(snapshot)
    driver.delete_snapshot(snapshot)
    for made in (larger, copy):
        driver.delete_volume(made)
    names = {one.name for one in service.client().volumes(POOL)}
    assert not [name for name in names if name.startswith("tmp-")], "a snapshot made on the way is left"


def test_a_clone_into_another_pool_is_a_copy(
    driver: Any, service: Service, context: Any, volume: Any, tmp_path: Path
) -> None:
    content = random_file(tmp_path / "content", 2 * MIB)
    write_to(service, volume.id, content)
    service.create_pool("other", 64 * MIB)
    copy = a_volume(context, pool="other")
    driver.create_cloned_volume(copy, volume)
    assert service.client().volume_describe(copy.id).pool == "other"
    assert holds(service, copy.id, content)
    driver.delete_volume(copy)
    service.client().pool_export("other")


def test_a_clone_has_the_block_size_of_its_source_in_every_pool(driver: Any, service: Service, context: Any) -> None:
    source = a_volume(context)
    service.client("cinder").volume_create(
        POOL, rpc.VolumeSpec(source.id, source.name, GIB, rpc.Provisioning.THIN, block_bytes=4096)
    )
    service.create_pool("other", 64 * MIB)
    copies = [a_volume(context, pool=pool) for pool in (POOL, "other")]
    for copy in copies:
        driver.create_cloned_volume(copy, source)
        assert service.client().volume_describe(copy.id).block_bytes == 4096
    for made in (*copies, source):
        driver.delete_volume(made)
    service.client().pool_export("other")


def test_statistics_have_a_pool_for_each_pool(driver: Any, service: Service) -> None:
    stats = driver.get_volume_stats(refresh=True)
    pools = {pool["pool_name"]: pool for pool in stats["pools"]}
    assert set(pools) == {pool.name for pool in service.client().pool_list()}
    assert 0 < pools[POOL]["free_capacity_gb"] <= pools[POOL]["total_capacity_gb"] <= 0.25
    assert {pool["backend_state"] for pool in stats["pools"]} == {"up"}
    assert stats["storage_protocol"] == "pollux"
    assert stats["shared_targets"] is False


def test_a_back_end_is_down_while_its_service_is_and_up_again_after(own_service: Service, context: Any) -> None:
    driver = make_driver(own_service, pollux_connect_ms=300)
    own_service.polluxd.stop()
    # cinder-volume starts while there is no service.
    driver.check_for_setup_error()
    assert driver.get_volume_stats(refresh=True)["backend_state"] == "down"
    own_service.polluxd.start()
    own_service.create_pool()
    (up,) = driver.get_volume_stats(refresh=True)["pools"]
    assert (up["pool_name"], up["backend_state"]) == (POOL, "up")
    own_service.polluxd.stop()
    (down,) = driver.get_volume_stats(refresh=True)["pools"]
    assert (down["pool_name"], down["backend_state"], down["free_capacity_gb"]) == (POOL, "down", 0)
    assert down["total_capacity_gb"] == 0
    own_service.polluxd.start()
    own_service.create_pool()
    (again,) = driver.get_volume_stats(refresh=True)["pools"]
    assert again["backend_state"] == "up"
    assert 0 < again["free_capacity_gb"] <= again["total_capacity_gb"]
    driver.create_volume(a_volume(context))


def test_a_pool_is_down_alone_while_its_device_fails(tmp_path: Path, context: Any) -> None:
    # A socket's path has 107 bytes at most.
    with (tempfile.TemporaryDirectory(prefix="pollux-") as folder,
          polluxd_on_a_faulty_disk(Path(folder), tmp_path / "polluxd.log") as (polluxd, disk)):
        service = Service(polluxd)
        failing = polluxd.describe_pool().name
        service.create_pool("other", 64 * MIB)
        driver = make_driver(service)

        def pools() -> dict[str, Any]:
            return {pool["pool_name"]: pool for pool in driver.get_volume_stats(refresh=True)["pools"]}

        before = pools()
        assert {pool["backend_state"] for pool in before.values()} == {"up"}
        disk.fail("flush")
        with pytest.raises(Exception, match="failed"):
            driver.create_volume(a_volume(context, pool=failing))
        down, other = pools()[failing], pools()["other"]
        assert (down["backend_state"], down["total_capacity_gb"], down["free_capacity_gb"]) == ("down", 0, 0)
        assert (other["backend_state"], other["total_capacity_gb"]) == ("up", before["other"]["total_capacity_gb"])
        disk.work()
        wait_until(lambda: pools()[failing]["backend_state"] == "up", 60, "the pool works again")
        driver.create_volume(a_volume(context, pool=failing))
        driver.client.close()
