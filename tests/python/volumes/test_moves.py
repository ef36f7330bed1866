"""Volumes that change their place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pollux import errors, nbd
from pollux_testing import MIB

from python.services import GIB, POOL, Service, new_id

pytest.importorskip("cinder")

from cinder import exception, objects
from pollux.cinder import moves

from python.volumes.helpers import (
    CONNECTOR,
    a_volume,
    attach_as_cinder_does,
    holds,
    make_driver,
    random_file,
    write_to,
)


@pytest.fixture
def other_pool(service: Service) -> Iterator[str]:
    service.create_pool("other", 128 * MIB)
    yield "other"
    service.client().pool_export("other")


@pytest.mark.parametrize("way", ["migrate", "retype"])
def test_a_volume_keeps_its_id_when_it_moves_to_another_pool(
    driver: Any, service: Service, context: Any, other_pool: str, tmp_path: Path, way: str
) -> None:
    made, content = a_volume(context), random_file(tmp_path / "content", 3 * MIB)
    driver.create_volume(made)
    write_to(service, made.id, content)
    host = {"host": f"h@pollux#{other_pool}"}
    if way == "migrate":
        assert driver.migrate_volume(context, made, host) == (True, None)
    else:
        kind = objects.VolumeType(id=new_id(), extra_specs={}, qos_specs_id=None)
        assert driver.retype(context, made, kind, {}, host) == (True, None)
    info = service.client().volume_describe(made.id)
    assert (info.pool, info.name, info.size_bytes) == (other_pool, made.name, GIB)
    assert holds(service, made.id, content)
    assert [one.volume_id for one in service.client().volumes(other_pool)] == [made.id]
    assert made.id not in [one.volume_id for one in service.client().volumes(POOL)]
    made.host = host["host"]
    driver.delete_volume(made)


def test_what_cannot_move_by_itself_stays_where_it_is(
    driver: Any, service: Service, context: Any, volume: Any, other_pool: str
) -> None:
    assert driver.migrate_volume(context, volume, {"host": "h@other#pool"}) == (False, None)
    with nbd.open_file(driver.client, volume.id, read_only=True), pytest.raises(exception.VolumeIsBusy):
        driver.migrate_volume(context, volume, {"host": f"h@pollux#{other_pool}"})
    attach_as_cinder_does(driver, context, volume, CONNECTOR)
    assert driver.migrate_volume(context, volume, {"host": f"h@pollux#{other_pool}"}) == (False, None)
    driver.terminate_connection(volume, None)
    volume.volume_attachment.objects.clear()
    assert service.client().volume_describe(volume.id).pool == POOL
    moves.forget(driver.client, volume.id)


@pytest.mark.parametrize("call", ["snapshot_create", "volume_delete", "volume_clone"])
def test_a_move_that_dies_loses_nothing_and_is_finished(
    driver: Any,
    service: Service,
    context: Any,
    other_pool: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    class Died(BaseException):
        pass

    made, content = a_volume(context), random_file(tmp_path / "content", MIB)
    driver.create_volume(made)
    write_to(service, made.id, content)
    original = getattr(driver.client, call)

    def dying(*arguments: Any, **options: Any) -> Any:
        answer = original(*arguments, **options)
        if call != "volume_delete" or arguments == (made.id,):
            raise Died
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(driver.client, call, dying)
        with pytest.raises(Died):
            driver.migrate_volume(context, made, {"host": f"h@pollux#{other_pool}"})
    # cinder-volume starts again.
    make_driver(service).check_for_setup_error()
    assert holds(service, made.id, content)
    if service.client().volume_describe(made.id).pool == POOL:
        # Written since: what the first attempt copied is not what counts.
        write_to(service, made.id, random_file(content, MIB, 2))
        assert driver.migrate_volume(context, made, {"host": f"h@pollux#{other_pool}"}) == (True, None)
    assert service.client().volume_describe(made.id).pool == other_pool
    assert holds(service, made.id, content)
    driver.delete_volume(made)
    moves.forget(driver.client, made.id)


def test_a_volume_that_cinder_copied_here_gets_the_id_that_the_user_knows(
    driver: Any, service: Service, context: Any, tmp_path: Path
) -> None:
    # The original is on another back end.
    original, copied = a_volume(context, host="h@other#pool"), a_volume(context)
    driver.create_volume(copied)
    content = random_file(tmp_path / "content", MIB)
    write_to(service, copied.id, content)
    assert driver.update_migrated_volume(context, original, copied, "available") == {"_name_id": None}
    original.host = copied.host
    assert holds(service, original.id, content)
    assert service.client().volume_describe(original.id).name == original.name
    with pytest.raises(errors.NotFound):
        service.client().volume_describe(copied.id)
    info = driver.initialize_connection(original, dict(CONNECTOR))
    assert info["data"]["pollux_serial"] == original.id
    driver.terminate_connection(original, None)
    # Where the id is taken, Cinder keeps the other.
    again = a_volume(context)
    driver.create_volume(again)
    with pytest.raises(NotImplementedError):
        driver.update_migrated_volume(context, original, again, "available")
    for one in (original, again):
        driver.delete_volume(one)
