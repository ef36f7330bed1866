"""What is refused, and in which words."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pollux import errors, nbd
from pollux.rpc import ttypes as rpc
from pollux_testing import MIB

from python.services import Service, new_id

pytest.importorskip("cinder")

from cinder import context as cinder_context
from cinder import exception

from python.volumes.helpers import (
    CONNECTOR,
    Images,
    a_snapshot,
    a_volume,
    holds,
    make_driver,
    random_file,
    same_bytes,
    write_to,
)


def test_a_full_pool_is_said_to_be_full(driver: Any, service: Service, context: Any) -> None:
    made = a_volume(context, specs={"pollux:provisioning": "thick"})
    with pytest.raises(exception.VolumeBackendAPIException, match="NO_SPACE") as caught:
        driver.create_volume(made)
    assert made.id in str(caught.value)
    with pytest.raises(errors.NotFound):
        service.client().volume_describe(made.id)


def test_a_service_that_is_down_is_said_to_be_unreachable(own_service: Service, context: Any) -> None:
    driver = make_driver(own_service, pollux_connect_ms=500)
    own_service.polluxd.stop()
    started = time.monotonic()
    with pytest.raises(exception.VolumeBackendAPIException, match="UNREACHABLE"):
        driver.create_volume(a_volume(context))
    assert time.monotonic() - started < 10


def test_a_certificate_without_the_right_is_named_at_setup(service: Service) -> None:
    reader = service.settings("reader")
    driver = make_driver(service, pollux_certificate=str(reader.certificate), pollux_key=str(reader.key))
    with pytest.raises(exception.VolumeBackendAPIException, match="DENIED"):
        driver.create_volume(a_volume(cinder_context.get_admin_context()))


def test_encrypted_volumes_are_refused(driver: Any, context: Any, images: Images, service: Service) -> None:
    made = a_volume(context, encryption_key_id=new_id())
    with pytest.raises(exception.InvalidInput, match="encrypt"):
        driver.create_volume(made)
    with pytest.raises(exception.InvalidInput, match="encrypt"):
        driver.initialize_connection(made, CONNECTOR)
    with pytest.raises(exception.NotSupportedOperation):
        driver.copy_image_to_encrypted_volume(context, made, images, new_id())
    with pytest.raises(errors.NotFound):
        service.client().volume_describe(made.id)


@pytest.mark.parametrize("spec", ["pollux:transport", "pollux:provisioning", "pollux:scsi_names"])
def test_an_extra_spec_with_an_unknown_value_is_refused(driver: Any, context: Any, spec: str) -> None:
    with pytest.raises(exception.InvalidInput, match=f"{spec} is 'fast'"):
        driver.create_volume(a_volume(context, specs={spec: "fast"}))


def test_a_volume_in_use_is_busy(driver: Any, service: Service, volume: Any) -> None:
    admin = service.client()
    attached = admin.attach(
        rpc.AttachSpec(
            attachment_id=new_id(), volume_id=volume.id, client_id=new_id(), transport=rpc.Transport.SCSI
        )
    )
    with pytest.raises(exception.VolumeIsBusy, match=volume.id):
        driver.delete_volume(volume)
    admin.detach(attached.attachment_id)


def test_two_copies_out_of_one_snapshot_do_not_touch_each_other(
    driver: Any, service: Service, context: Any, volume: Any, tmp_path: Path
) -> None:
    content = random_file(tmp_path / "content", 2 * MIB)
    write_to(service, volume.id, content)
    snapshot = a_snapshot(context, volume)
    driver.create_snapshot(snapshot)
    with (
        nbd.open_volume(driver.client, snapshot.id, read_only=True) as first,
        nbd.open_file(driver.client, snapshot.id, read_only=True) as file,
    ):
        assert file.read(MIB) == content.read_bytes()[:MIB]
        # A whole copy begins and ends meanwhile.
        assert holds(service, snapshot.id, content)
        assert file.read(MIB) == content.read_bytes()[MIB:]
        assert same_bytes(content, "raw", first, "raw")
    driver.delete_snapshot(snapshot)


@pytest.mark.parametrize("kind", ["volume", "snapshot"])
def test_what_is_being_read_is_busy_and_read_to_its_end(
    driver: Any, service: Service, context: Any, volume: Any, tmp_path: Path, kind: str
) -> None:
    content = random_file(tmp_path / "content", MIB)
    write_to(service, volume.id, content)
    snapshot = a_snapshot(context, volume)
    driver.create_snapshot(snapshot)
    source, delete, refusal = {
        "volume": (volume.id, lambda: driver.delete_volume(volume), exception.VolumeIsBusy),
        "snapshot": (snapshot.id, lambda: driver.delete_snapshot(snapshot), exception.SnapshotIsBusy),
    }[kind]
    with nbd.open_file(driver.client, source, read_only=True) as file:
        assert file.read(4096) == content.read_bytes()[:4096]
        with pytest.raises(refusal):
            delete()
        assert file.read(MIB - 4096) == content.read_bytes()[4096:]
    driver.delete_snapshot(snapshot)


def test_what_a_driver_that_died_left_open_keeps_no_volume_from_deletion(
    start_service: Callable[..., Service], context: Any
) -> None:
    service = start_service("abandoned", abandoned_after_s=1)
    driver = make_driver(service)
    made = a_volume(context)
    driver.create_volume(made)
    # Entered and never left: the process died in it, before or after it connected.
    left = nbd.open_volume(driver.client, made.id, read_only=True)
    left.__enter__()
    dying = nbd.open_file(driver.client, made.id, read_only=False)
    with pytest.raises(exception.VolumeIsBusy):
        driver.delete_volume(made)
    dying._socket.close()
    deadline = time.monotonic() + 60
    while True:
        try:
            driver.delete_volume(made)
            break
        except exception.VolumeIsBusy:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    with pytest.raises(errors.NotFound):
        service.client().volume_describe(made.id)
