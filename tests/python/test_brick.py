"""The os-brick connector against a real service."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pollux import brick, connection
from pollux.rpc import ttypes as rpc
from pollux_testing import MIB

from python.services import COMPUTE_HOST, GIB, Service, new_id

pytest.importorskip("os_brick")

from os_brick import exception
from os_brick.initiator import connector as os_brick_connector
from pollux.brick import clients
from pollux.brick import connector as pollux_connector


@pytest.fixture
def configured(service: Service) -> Iterator[None]:
    settings = service.settings("compute")
    clients.configure(
        {"address": settings.address, "ca": settings.ca, "certificate": settings.certificate, "key": settings.key}
    )
    yield
    clients.configure({})


@pytest.fixture
def connector(configured: None) -> Any:
    brick.register()
    return os_brick_connector.InitiatorConnector.factory("pollux", "sudo")


def properties(volume_id: str, transport: str = "scsi", **more: Any) -> dict[str, Any]:
    made = connection.Connection(
        volume_id=volume_id,
        transport=transport,
        serial=connection.serial_of(volume_id, transport),
        home="test-host",
    )
    return {**made.as_data(), "client_id": new_id(), "access_mode": "rw", "encrypted": False, "qos_specs": None, **more}


@pytest.fixture
def volume_id(service: Service) -> Iterator[str]:
    cinder = service.client("cinder")
    made = service.create_volume().volume_id
    cinder.authorise(rpc.Authorisation(volume_id=made, host=COMPUTE_HOST))
    yield made
    cinder.unauthorise(made, "")
    cinder.volume_delete(made)


@pytest.mark.parametrize("transport", ["scsi", "blk"])
def test_a_volume_is_connected_and_disconnected_however_often(
    connector: Any, service: Service, volume_id: str, transport: str
) -> None:
    wanted = properties(volume_id, transport)
    first, again = connector.connect_volume(wanted), connector.connect_volume(wanted)
    assert first == again
    assert Path(first["path"]).is_socket()
    assert connector.check_valid_device(first["path"])
    assert connector.get_volume_paths(wanted) == [first["path"]]
    (attached,) = service.client().attachment_list(volume_id)
    assert (attached.attachment_id, attached.client_id) == (first["attachment_id"], wanted["client_id"])
    assert volume_id.startswith(attached.serial)
    if transport == "scsi":
        # The type says otherwise now: from the next attachment on.
        assert attached.scsi_names == rpc.ScsiNames.POLLUX
        connector.connect_volume({**wanted, "scsi_names": "qemu"})
        (attached,) = service.client().attachment_list(volume_id)
        assert attached.scsi_names == rpc.ScsiNames.QEMU
    connector.disconnect_volume(wanted)
    connector.disconnect_volume(wanted, None, force=True)
    assert service.client().attachment_list(volume_id) == []
    if transport == "blk":
        assert not connector.check_valid_device(first["path"])
    service.client().controller_delete(wanted["client_id"])


def test_volumes_of_one_guest_share_a_controller(connector: Any, service: Service, volume_id: str) -> None:
    cinder = service.client("cinder")
    second = service.create_volume().volume_id
    cinder.authorise(rpc.Authorisation(volume_id=second, host=COMPUTE_HOST))
    one, two = properties(volume_id), properties(second)
    two["client_id"] = one["client_id"]
    devices = [connector.connect_volume(wanted) for wanted in (one, two)]
    assert len({device["path"] for device in devices}) == 1
    assert len({device["target"] for device in devices}) == 2
    for wanted in (one, two):
        connector.disconnect_volume(wanted)
    service.client().controller_delete(one["client_id"])
    cinder.unauthorise(second, "")
    cinder.volume_delete(second)


def test_two_guests_of_one_host_have_a_socket_each(connector: Any, volume_id: str) -> None:
    guests = [properties(volume_id, "blk") for _ in range(2)]
    paths = [connector.connect_volume(wanted)["path"] for wanted in guests]
    assert len(set(paths)) == 2
    connector.disconnect_volume(guests[0])
    assert not Path(paths[0]).exists()
    assert Path(paths[1]).is_socket()
    connector.disconnect_volume(guests[1])


def test_a_guest_that_was_resized_gets_its_disk_anew(connector: Any, volume_id: str) -> None:
    wanted = properties(volume_id, "blk", queues=1)
    assert connector.connect_volume(wanted)["queues"] == 1
    assert connector.connect_volume({**wanted, "queues": 3})["queues"] == 3
    connector.disconnect_volume(wanted)


def test_a_read_only_connection_is_read_only(connector: Any, volume_id: str) -> None:
    wanted = properties(volume_id, "blk", access_mode="ro")
    assert connector.connect_volume(wanted)["read_only"] is True
    connector.disconnect_volume(wanted)


def test_the_size_is_what_the_service_says(connector: Any, service: Service, volume_id: str) -> None:
    assert connector.extend_volume(properties(volume_id)) == GIB
    service.client("cinder").volume_extend(volume_id, 2 * GIB)
    assert connector.extend_volume(properties(volume_id)) == 2 * GIB


def test_a_volume_that_cinder_has_not_authorised_is_refused(connector: Any, service: Service) -> None:
    made = service.create_volume().volume_id
    with pytest.raises(exception.BrickException, match=f"{COMPUTE_HOST} is not authorised"):
        connector.connect_volume(properties(made))
    assert service.client().attachment_list(made) == []
    service.client("cinder").volume_delete(made)


def test_a_volume_with_another_home_is_refused_with_its_name(connector: Any) -> None:
    with pytest.raises(exception.BrickException, match="home is host far-away"):
        connector.connect_volume(properties(new_id(), home="far-away"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"encrypted": True}, "plain text"),
        ({"pollux_version": 2}, "upgrade"),
        ({"pollux_version": None}, "no connection|not the connection"),
        ({"transport": "nvme"}, "scsi, blk"),
        ({"volume_id": "x"}, "not a UUID"),
    ],
)
def test_connections_that_cannot_be_made_are_refused(
    connector: Any, service: Service, volume_id: str, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(exception.BrickException, match=says):
        connector.connect_volume({**properties(volume_id), **change})
    assert service.client().attachment_list(volume_id) == []


@pytest.fixture
def host_connector(service: Service) -> Any:
    """As cinder-volume has it: with Cinder's certificate."""
    return pollux_connector.PolluxConnector("sudo", client=service.client("cinder"))


def test_a_host_that_copies_gets_a_volume_as_a_file(host_connector: Any, service: Service, volume_id: str) -> None:
    wanted = properties(volume_id, client_id="")
    content = bytes(range(256)) * 4096 * 5
    device = host_connector.connect_volume(wanted)
    file = device["path"]
    assert host_connector.check_valid_device(file)
    assert file.seek(0, os.SEEK_END) == GIB
    assert file.seek(3 * MIB) == 3 * MIB
    assert file.write(content) == len(content)
    # Zeros go without data.
    assert file.write(bytes(8 * MIB)) == 8 * MIB
    # In the middle of a block, and over the border of two.
    file.seek(100 * MIB + 500)
    assert file.write(b"across the border") == 17
    host_connector.disconnect_volume(wanted, device)
    assert file.closed
    mapped = service.client().volume_describe(volume_id).mapped_bytes
    assert len(content) <= mapped <= len(content) + 4 * MIB

    again = host_connector.connect_volume({**wanted, "access_mode": "ro"})
    with again["path"] as file:
        assert file.read(3 * MIB) == bytes(3 * MIB)
        assert file.read(len(content)) == content
        assert file.read(MIB) == bytes(MIB)
        file.seek(100 * MIB + 490)
        assert file.read(40) == bytes(10) + b"across the border" + bytes(13)
        file.seek(-10, os.SEEK_END)
        assert file.read(100) == bytes(10)
        assert file.read(1) == b""
        assert not file.writable()
        file.seek(0)
        with pytest.raises(OSError, match=os.strerror(errno.EPERM)):
            file.write(b"x" * 512)
    host_connector.disconnect_volume(wanted, again)


def test_a_file_does_not_take_more_than_the_volume_or_its_pool_holds(
    host_connector: Any, service: Service
) -> None:
    service.create_pool("tiny", 64 * MIB)
    made = service.create_volume(GIB, "tiny").volume_id
    device = host_connector.connect_volume(properties(made, client_id=""))
    file = device["path"]
    file.seek(GIB - 512)
    with pytest.raises(OSError, match="volume ends") as caught:
        file.write(b"x" * 1024)
    assert caught.value.errno == errno.ENOSPC
    file.seek(0)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        file.write(b"x" * (96 * MIB))
    host_connector.disconnect_volume(properties(made, client_id=""), device)
    service.client("cinder").volume_delete(made)
    service.client().pool_export("tiny")


def test_a_compute_host_gets_no_files(connector: Any, volume_id: str) -> None:
    with pytest.raises(exception.BrickException, match="compute"):
        connector.connect_volume(properties(volume_id, client_id=""))


_GLANCE = '''
import glance_store
from os_brick import exception
from os_brick.initiator import connector
from pollux import brick
from pollux.brick import clients
brick.register()
clients.configure({SETTINGS})
device = connector.InitiatorConnector.factory("pollux", "sudo")
try:
    device.connect_volume({PROPERTIES})
except exception.BrickException as error:
    print(error)
else:
    raise SystemExit("the volume was connected")
'''


def test_glances_cinder_store_is_refused_and_told_why(service: Service, volume_id: str, tmp_path: Path) -> None:
    """It would open the path, and there is none: see `_open_cinder_volume` of glance_store's cinder driver."""
    # The process is known by its having loaded that package.
    package = tmp_path / "glance_store"
    package.mkdir()
    (package / "__init__.py").touch()
    settings = service.settings("cinder")
    values = {"address": settings.address, "ca": str(settings.ca), "certificate": str(settings.certificate),
              "key": str(settings.key)}
    program = _GLANCE.replace("{SETTINGS}", repr(values)).replace(
        "{PROPERTIES}", repr(properties(volume_id, client_id="")))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120,
                          env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ['PYTHONPATH']}"})
    assert done.returncode == 0, done.stderr
    assert f"Volume {volume_id} cannot be connected" in done.stdout
    assert "use another store of Glance" in done.stdout


def test_errors_of_leaving_are_ignored_only_when_asked(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("ca", "certificate", "key")}
    clients.configure({"address": "127.0.0.1:1", "connect_ms": 200, **files})
    connector = pollux_connector.PolluxConnector("sudo")
    connector.disconnect_volume(properties(new_id()), None, ignore_errors=True)
    with pytest.raises(exception.BrickException, match="cannot be disconnected"):
        connector.disconnect_volume(properties(new_id()), None, force=True)
    clients.configure({})


def test_the_properties_of_the_host_name_its_certificate(configured: None) -> None:
    assert pollux_connector.PolluxConnector.get_connector_properties("sudo") == {"pollux_host": COMPUTE_HOST}


def test_the_properties_of_a_host_never_fail_or_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "client.toml").write_text("this is no toml")
    monkeypatch.setenv("POLLUX_CLIENT_CONF", str(tmp_path / "client.toml"))
    started = time.monotonic()
    assert pollux_connector.PolluxConnector.get_connector_properties("sudo", multipath=True, host="x") == {}
    assert time.monotonic() - started < 1


def test_registering_twice_registers_once() -> None:
    brick.register()
    brick.register()
    assert os_brick_connector.unix_connector_list.count("pollux.brick.connector.PolluxConnector") == 1
    for arch in ("x86_64", "s390x", "ppc64le"):
        assert "POLLUX" in os_brick_connector.get_connector_mapping(arch)
