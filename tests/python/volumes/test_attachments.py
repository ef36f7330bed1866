"""Who may reach a volume, from when and until when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pollux import connection
from pollux.rpc import ttypes as rpc
from pollux_testing import MIB

from python.services import COMPUTE_HOST, Service, new_id

pytest.importorskip("cinder")

from cinder import exception, objects
from cinder.volume import volume_utils

from python.volumes.helpers import (
    CONNECTOR,
    a_volume,
    an_attachment,
    attach_as_cinder_does,
    holds,
    hosts,
    random_file,
    write_to,
)


@pytest.mark.parametrize("transport", ["scsi", "blk"])
def test_a_connection_authorises_the_host_and_holds_no_secret(
    driver: Any, service: Service, context: Any, transport: str
) -> None:
    made = a_volume(context, specs={"pollux:transport": transport})
    driver.create_volume(made)
    connector = dict(CONNECTOR)
    info = driver.initialize_connection(made, connector)
    assert info["driver_volume_type"] == "pollux"
    parsed = connection.parse(info["data"], client_id=new_id())
    assert (parsed.volume_id, parsed.transport, parsed.home) == (made.id, transport, "test-host")
    assert made.id.startswith(parsed.serial)
    assert hosts(service, made) == [COMPUTE_HOST]
    for settings in (service.settings("cinder"), service.settings("compute")):
        assert str(settings.key) not in repr(info)
    driver.terminate_connection(made, connector)
    driver.terminate_connection(made, connector)
    assert hosts(service, made) == []
    driver.delete_volume(made)
    driver.terminate_connection(made, connector)


def test_two_hosts_hold_a_volume_while_a_guest_moves(driver: Any, service: Service, context: Any, volume: Any) -> None:
    source, destination = (
        attach_as_cinder_does(driver, context, volume, one) for one in (CONNECTOR, {"host": "compute-2"})
    )
    assert sorted(hosts(service, volume)) == [COMPUTE_HOST, "compute-2"]
    assert driver.terminate_connection(volume, source.connector) is True
    assert hosts(service, volume) == ["compute-2"]
    driver.terminate_connection(volume, destination.connector)


def test_cinder_copies_between_volumes_that_it_attaches_itself(
    driver: Any, service: Service, context: Any, volume: Any, tmp_path: Path
) -> None:
    content = random_file(tmp_path / "content", 5 * MIB)
    write_to(service, volume.id, content)
    other = a_volume(context)
    driver.create_volume(other)
    properties = {"host": "cinder-host"}
    source, _ = driver._attach_volume(context, volume, properties)
    target, _ = driver._attach_volume(context, other, properties)
    volume_utils.copy_volume(source["device"]["path"], target["device"]["path"], 64, "1M")
    for info, one in ((target, other), (source, volume)):
        driver._detach_volume(context, info, one, properties, force=True)
    assert holds(service, other.id, content)
    assert hosts(service, other) == []
    assert service.client().volume_describe(other.id).mapped_bytes < 16 * MIB
    driver.delete_volume(other)


def test_another_guest_on_the_host_keeps_its_volume(driver: Any, service: Service, context: Any, volume: Any) -> None:
    first, second = (attach_as_cinder_does(driver, context, volume, CONNECTOR) for _ in range(2))
    assert driver.terminate_connection(volume, first.connector) is True
    assert driver.terminate_connection(volume, first.connector) is True
    assert set(hosts(service, volume)) == {COMPUTE_HOST}
    volume.volume_attachment.objects.remove(first)
    assert driver.terminate_connection(volume, second.connector) is False
    assert hosts(service, volume) == []


def test_two_attachments_of_one_host_that_end_at_the_same_moment_leave_it_nothing(
    driver: Any, service: Service, context: Any, volume: Any
) -> None:
    attachments = [attach_as_cinder_does(driver, context, volume, CONNECTOR) for _ in range(2)]
    # Cinder removes an attachment after the driver has ended it: each of two calls sees both.
    for one in attachments:
        driver.terminate_connection(volume, one.connector)
    assert hosts(service, volume) == []


def test_a_connector_that_names_no_host_ends_no_connection(
    driver: Any, service: Service, context: Any, volume: Any
) -> None:
    attachment = attach_as_cinder_does(driver, context, volume, CONNECTOR)
    for connector in ({}, {"ip": "127.0.0.1"}):
        driver.terminate_connection(volume, connector)
    assert hosts(service, volume) == [COMPUTE_HOST]
    driver.terminate_connection(volume, attachment.connector)
    assert hosts(service, volume) == []


def test_what_a_copying_host_was_granted_ends_without_touching_the_guests(
    driver: Any, service: Service, context: Any, volume: Any
) -> None:
    guest = attach_as_cinder_does(driver, context, volume, CONNECTOR)
    # cinder-backup calls over the message bus: what the driver leaves in the connector does not reach it.
    driver.initialize_connection(volume, dict(CONNECTOR))
    assert len(hosts(service, volume)) == 2
    driver.terminate_connection(volume, CONNECTOR)
    assert hosts(service, volume) == [COMPUTE_HOST]
    driver.terminate_connection(volume, guest.connector)
    assert hosts(service, volume) == []


def test_attachments_from_before_there_were_grants_end_with_the_last(
    driver: Any, service: Service, context: Any, volume: Any
) -> None:
    service.client("cinder").authorise(rpc.Authorisation(volume_id=volume.id, host=COMPUTE_HOST))
    volume.volume_attachment.objects = [an_attachment(context, volume, CONNECTOR) for _ in range(2)]
    driver.terminate_connection(volume, CONNECTOR)
    assert hosts(service, volume) == [COMPUTE_HOST]
    volume.volume_attachment.objects.pop()
    driver.terminate_connection(volume, CONNECTOR)
    assert hosts(service, volume) == []


def test_no_connector_ends_every_connection(driver: Any, service: Service, volume: Any) -> None:
    for name in ("a", "b"):
        driver.initialize_connection(volume, {"host": name})
    driver.terminate_connection(volume, None)
    assert hosts(service, volume) == []


def test_a_connector_without_host_is_refused(driver: Any) -> None:
    with pytest.raises(exception.InvalidConnectorException, match="host"):
        driver.validate_connector({"ip": "127.0.0.1"})


def test_a_type_that_changes_the_transport_alone_changes_in_place(driver: Any, context: Any, volume: Any) -> None:
    other = objects.VolumeType(id=new_id(), extra_specs={"pollux:transport": "blk"}, qos_specs_id=None)
    assert driver.retype(context, volume, other, {"encryption": None}, {"host": volume.host}) == (True, None)
    thick = objects.VolumeType(id=new_id(), extra_specs={"pollux:provisioning": "thick"}, qos_specs_id=None)
    assert driver.retype(context, volume, thick, {"encryption": None}, {"host": volume.host}) == (False, None)
    assert driver.retype(context, volume, other, {}, {"host": "h@other#elsewhere"}) == (False, None)


@pytest.mark.parametrize(
    ("transport", "asked", "told"), [("scsi", "QEMU", "qemu"), ("scsi", "", None), ("blk", "qemu", None)]
)
def test_a_type_says_by_which_names_guests_find_the_disk(
    driver: Any, context: Any, transport: str, asked: str, told: str | None
) -> None:
    specs = {"pollux:transport": transport, **({"pollux:scsi_names": asked} if asked else {})}
    made = a_volume(context, specs=specs)
    driver.create_volume(made)
    data = driver.initialize_connection(made, dict(CONNECTOR))["data"]
    # What is the default is not said: hosts with an earlier package read the connection as they always did.
    assert data.get("scsi_names") == told
    assert connection.parse(data).scsi_names == (told or "pollux")
    driver.terminate_connection(made, dict(CONNECTOR))
    driver.delete_volume(made)
