"""The Cinder driver against a real service, without Cinder's own services."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pollux import connection, errors, nbd
from pollux.rpc import ttypes as rpc
from pollux_testing import MIB

from python.services import COMPUTE_HOST, GIB, POOL, Service, new_id

pytest.importorskip("cinder")

import cinder.privsep
from cinder import context as cinder_context
from cinder import exception, objects
from cinder.message import api as message_api
from cinder.message import message_field
from cinder.objects import fields
from cinder.volume import configuration, volume_utils
from cinder.volume import driver as cinder_driver
from oslo_config import cfg
from oslo_utils import importutils

SMALL_POOL = "small"
CONNECTOR = {"host": "nova-name-of-host", "pollux_host": COMPUTE_HOST}


class Images:
    """Glance, as far as the driver sees it: images are files."""

    temp_images = None

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.meta: dict[str, dict[str, Any]] = {}
        self.on_download: Callable[[], None] = lambda: None

    def add(self, content: Path | None, disk_format: str, **meta: Any) -> str:
        image_id = new_id()
        self.meta[image_id] = {"id": image_id, "disk_format": disk_format, "container_format": "bare", **meta}
        if content:
            self.path(image_id).write_bytes(content.read_bytes())
            self.meta[image_id]["size"] = content.stat().st_size
        return image_id

    def path(self, image_id: str) -> Path:
        return self._folder / image_id

    def show(self, context: Any, image_id: str) -> dict[str, Any]:
        return self.meta[image_id]

    def download(self, context: Any, image_id: str, data: Any) -> None:
        data.write(self.path(image_id).read_bytes())
        self.on_download()

    def update(self, context: Any, image_id: str, meta: dict[str, Any], data: Any = None, **options: Any) -> None:
        with self.path(image_id).open("wb") as file:
            while part := data.read(1 << 20):
                file.write(part)


class Messages:
    """Cinder's user messages, kept instead of stored in a database."""

    def __init__(self) -> None:
        self.made: list[tuple[Any, Any, str]] = []

    def create(self, context: Any, action: Any, resource_uuid: str, detail: Any) -> None:
        self.made.append((action, detail, resource_uuid))


@pytest.fixture(scope="session", autouse=True)
def _cinder(tmp_path_factory: pytest.TempPathFactory) -> None:
    objects.register_all()
    cfg.CONF([], project="cinder", default_config_files=[])
    cfg.CONF.set_override("image_conversion_dir", str(tmp_path_factory.mktemp("conversion")))
    # Looking into an image is privileged in Cinder; here it needs no helper process.
    cinder.privsep.sys_admin_pctxt.set_client_mode(False)


@pytest.fixture
def context() -> Any:
    return cinder_context.RequestContext("user", "project", is_admin=True)


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(tmp_path)


def make_driver(service: Service, **options: Any) -> Any:
    settings = service.settings("cinder")
    conf = configuration.Configuration(cinder_driver.volume_opts, config_group=f"pollux-{new_id()}")
    made = importutils.import_object("pollux.cinder.driver.PolluxDriver", configuration=conf, host="h@pollux")
    given = {
        "pollux_address": settings.address,
        "pollux_ca": str(settings.ca),
        "pollux_certificate": str(settings.certificate),
        "pollux_key": str(settings.key),
        **options,
    }
    for name, value in given.items():
        cfg.CONF.set_override(name, value, group=conf.config_group)
    made.do_setup(None)
    return made


@pytest.fixture
def driver(service: Service) -> Iterator[Any]:
    made = make_driver(service)
    made.check_for_setup_error()
    yield made
    made.client.close()


def a_volume(context: Any, *, size: int = 1, pool: str = POOL, specs: dict[str, str] | None = None, **more: Any) -> Any:
    values: dict[str, Any] = {
        "id": new_id(),
        "_name_id": None,
        "host": f"h@pollux#{pool}",
        "size": size,
        "status": "creating",
        "encryption_key_id": None,
        "volume_type_id": None,
        "multiattach": False,
        "volume_attachment": objects.VolumeAttachmentList(objects=[]),
        "glance_metadata": {},
        **more,
    }
    # Uploading looks at the type of every volume.
    kind = objects.VolumeType(id=new_id(), extra_specs=specs or {}, qos_specs_id=None)
    return objects.Volume(context, **{**values, "volume_type_id": kind.id, "volume_type": kind})


def a_snapshot(context: Any, volume: Any) -> Any:
    return objects.Snapshot(context, id=new_id(), volume=volume, volume_id=volume.id, volume_size=volume.size)


def an_attachment(context: Any, volume: Any, connector: dict[str, str]) -> Any:
    return objects.VolumeAttachment(
        context,
        id=new_id(),
        volume_id=volume.id,
        connector=connector,
        attach_status=fields.VolumeAttachStatus.ATTACHED,
    )


@pytest.fixture
def volume(driver: Any, context: Any) -> Iterator[Any]:
    made = a_volume(context)
    driver.create_volume(made)
    yield made
    driver.delete_volume(made)


def random_file(path: Path, size_bytes: int, seed: int = 1) -> Path:
    path.write_bytes(random.Random(seed).randbytes(size_bytes))
    return path


def holds(service: Service, volume_id: str, content: Path) -> bool:
    """Whether a volume or snapshot holds `content`, and zeros behind it. Read without the driver."""
    with nbd.open_volume(service.client("admin"), volume_id, read_only=True) as url:
        return same_bytes(content, "raw", url, "raw")


def same_bytes(one: Path | str, one_format: str, other: Path | str, other_format: str) -> bool:
    """Whether two images have the same bytes; one that is longer has zeros there."""
    done = subprocess.run(
        ["qemu-img", "compare", "-f", one_format, "-F", other_format, str(one), str(other)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0


def write_to(service: Service, volume_id: str, content: Path) -> None:
    with nbd.open_volume(service.client("admin"), volume_id, read_only=False) as url:
        command = ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(content), url]
        subprocess.run(command, check=True, timeout=300)


# ---------------------------------------------------------------- volumes


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


def test_statistics_have_a_pool_for_each_pool(driver: Any, service: Service) -> None:
    stats = driver.get_volume_stats(refresh=True)
    pools = {pool["pool_name"]: pool for pool in stats["pools"]}
    assert set(pools) == {pool.name for pool in service.client().pool_list()}
    assert 0 < pools[POOL]["free_capacity_gb"] <= pools[POOL]["total_capacity_gb"] <= 0.25
    assert stats["storage_protocol"] == "pollux"
    assert stats["shared_targets"] is False


# ---------------------------------------------------------------- images


@pytest.mark.parametrize("disk_format", ["raw", "qcow2"])
def test_an_image_comes_back_byte_for_byte(
    driver: Any, service: Service, context: Any, images: Images, volume: Any, tmp_path: Path, disk_format: str
) -> None:
    raw = random_file(tmp_path / "raw", 5 * MIB + 512)
    with raw.open("ab") as file:
        file.truncate(9 * MIB)
    stored = raw
    if disk_format != "raw":
        stored = tmp_path / "stored"
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", disk_format, str(raw), str(stored)], check=True)
    driver.copy_image_to_volume(context, volume, images, images.add(stored, disk_format))

    assert holds(service, volume.id, raw)

    uploaded = images.add(None, disk_format)
    driver.copy_volume_to_image(context, volume, images, images.meta[uploaded])
    assert same_bytes(raw, "raw", images.path(uploaded), disk_format)
    if disk_format == "raw":
        assert images.path(uploaded).stat().st_size == GIB
    assert not [one for one in service.client().volumes(POOL) if one.name.startswith("tmp-")]


def test_an_image_over_a_used_volume_leaves_nothing_of_what_was_there(
    driver: Any, service: Service, context: Any, images: Images, volume: Any, tmp_path: Path
) -> None:
    write_to(service, volume.id, random_file(tmp_path / "old", 4 * MIB, 7))
    image = tmp_path / "image"
    with random_file(image, MIB, 8).open("ab") as file:
        file.truncate(4 * MIB)
    driver.copy_image_to_volume(context, volume, images, images.add(image, "raw"), disable_sparse=True)
    assert holds(service, volume.id, image)


def test_an_image_that_does_not_fit_the_pool_fails_as_too_big(
    driver: Any, service: Service, context: Any, images: Images, tmp_path: Path
) -> None:
    service.create_pool(SMALL_POOL, 64 * MIB)
    made = a_volume(context, pool=SMALL_POOL)
    driver.create_volume(made)
    image_id = images.add(random_file(tmp_path / "big", 96 * MIB), "raw")
    with pytest.raises(exception.ImageTooBig, match="full"):
        driver.copy_image_to_volume(context, made, images, image_id)
    driver.delete_volume(made)
    service.client().pool_export(SMALL_POOL)


def test_an_image_that_is_larger_than_the_volume_is_refused(
    driver: Any, context: Any, images: Images, volume: Any, tmp_path: Path
) -> None:
    image = tmp_path / "huge"
    with image.open("wb") as file:
        file.truncate(2 * GIB)
    qcow2 = tmp_path / "huge.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(image), str(qcow2)], check=True)
    with pytest.raises(exception.ImageUnacceptable, match="fit"):
        driver.copy_image_to_volume(context, volume, images, images.add(qcow2, "qcow2"))


def test_an_image_with_a_backing_file_is_refused(
    driver: Any, service: Service, context: Any, images: Images, volume: Any, tmp_path: Path
) -> None:
    secret = random_file(tmp_path / "secret", MIB)
    overlay = tmp_path / "overlay"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(secret), str(overlay)], check=True
    )
    with pytest.raises(exception.CinderException):
        driver.copy_image_to_volume(context, volume, images, images.add(overlay, "qcow2"))
    assert service.client().volume_describe(volume.id).mapped_bytes == 0


def test_a_copy_that_the_service_does_not_survive_fails_and_the_user_is_told(
    own_service: Service, context: Any, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = Messages()
    monkeypatch.setattr(message_api, "API", lambda: messages)
    driver = make_driver(own_service, pollux_connect_ms=500)
    made = a_volume(context)
    driver.create_volume(made)
    images.on_download = own_service.polluxd.kill
    with pytest.raises(exception.CinderException):
        driver.copy_image_to_volume(context, made, images, images.add(random_file(tmp_path / "i", MIB), "raw"))
    assert messages.made == [
        (message_field.Action.COPY_IMAGE_TO_VOLUME, message_field.Detail.DRIVER_FAILED_CREATE, made.id)
    ]


# ---------------------------------------------------------------- refusals


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
    with pytest.raises(exception.VolumeBackendAPIException, match=own_service.address):
        driver.check_for_setup_error()
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


@pytest.mark.parametrize("spec", ["pollux:transport", "pollux:provisioning"])
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


def test_what_a_driver_that_died_left_open_keeps_no_volume_from_deletion(
    driver: Any, service: Service, context: Any
) -> None:
    made = a_volume(context)
    driver.create_volume(made)
    opened = [nbd.open_volume(driver.client, made.id, read_only=read_only) for read_only in (True, False)]
    for one in opened:
        # Entered and never left: the process died in it.
        one.__enter__()
    with pytest.raises(errors.Busy):
        service.client().volume_delete(made.id)
    driver.delete_volume(made)
    with pytest.raises(errors.NotFound):
        service.client().volume_describe(made.id)


# ---------------------------------------------------------------- attachments


def hosts(service: Service, volume: Any) -> list[str]:
    return [one.host for one in service.client().authorisation_list(volume.id)]


@pytest.mark.parametrize("transport", ["scsi", "blk"])
def test_a_connection_authorises_the_host_and_holds_no_secret(
    driver: Any, service: Service, context: Any, transport: str
) -> None:
    made = a_volume(context, specs={"pollux:transport": transport})
    driver.create_volume(made)
    info = driver.initialize_connection(made, CONNECTOR)
    assert info["driver_volume_type"] == "pollux"
    parsed = connection.parse(info["data"], client_id=new_id())
    assert (parsed.volume_id, parsed.transport, parsed.home) == (made.id, transport, "test-host")
    assert made.id.startswith(parsed.serial)
    assert hosts(service, made) == [COMPUTE_HOST]
    for settings in (service.settings("cinder"), service.settings("compute")):
        assert str(settings.key) not in repr(info)
    driver.terminate_connection(made, CONNECTOR)
    driver.terminate_connection(made, CONNECTOR)
    assert hosts(service, made) == []
    driver.delete_volume(made)
    driver.terminate_connection(made, CONNECTOR)


def test_two_hosts_hold_a_volume_while_a_guest_moves(driver: Any, service: Service, context: Any, volume: Any) -> None:
    destination = {"host": "compute-2"}
    volume.volume_attachment.objects = [an_attachment(context, volume, one) for one in (CONNECTOR, destination)]
    driver.initialize_connection(volume, CONNECTOR)
    driver.initialize_connection(volume, destination)
    assert sorted(hosts(service, volume)) == [COMPUTE_HOST, "compute-2"]
    assert driver.terminate_connection(volume, CONNECTOR) is True
    assert hosts(service, volume) == ["compute-2"]
    driver.terminate_connection(volume, destination)


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
    volume.volume_attachment.objects = [an_attachment(context, volume, CONNECTOR) for _ in range(2)]
    driver.initialize_connection(volume, CONNECTOR)
    assert driver.terminate_connection(volume, CONNECTOR) is True
    assert hosts(service, volume) == [COMPUTE_HOST]
    volume.volume_attachment.objects.pop()
    assert driver.terminate_connection(volume, CONNECTOR) is False
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
    assert driver.retype(context, volume, other, {}, {"host": "h@pollux#elsewhere"}) == (False, None)
