"""The Nova side: domain XML as libvirt's schema wants it, and the wraps around the classes of a real Nova."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pollux import connection, errors
from pollux.rpc import ttypes as rpc

from python.services import COMPUTE_HOST, Service, new_id

pytest.importorskip("nova")

import nova.conf
from nova import exception, objects
from nova.compute import power_state
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import driver as libvirt_driver
from pollux.brick import clients
from pollux.nova import hook, options, volume, wraps, xml

CONF = nova.conf.CONF
QEMU_7_2, QEMU_8_2, QEMU_10 = 7_002_000, 8_002_000, 10_000_002
_NS = f"{{{xml.QEMU_NAMESPACE}}}"


def arguments(domain_xml: str) -> list[str]:
    tree = ElementTree.fromstring(domain_xml)
    return [arg.get("value", "") for arg in tree.iterfind(f"./{_NS}commandline/{_NS}arg")]


def libvirt_accepts(domain_xml: str, tmp_path: Path) -> None:
    file = tmp_path / "domain.xml"
    file.write_text(domain_xml)
    done = subprocess.run(
        ["virt-xml-validate", str(file), "domain"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{domain_xml}"


# ---------------------------------------------------------------- a stand-in for Nova's driver


class Guest:
    """A libvirt domain."""

    def __init__(self, domain_xml: str, running: bool = True) -> None:
        self.domain_xml = domain_xml
        self.running = running

    def get_power_state(self, host: Any) -> int:
        return power_state.RUNNING if self.running else power_state.SHUTDOWN

    def get_xml_desc(self) -> str:
        return self.domain_xml


class NovaDriver:
    """The methods of LibvirtDriver that are wrapped and used, over Nova's own configuration classes. Volumes go
    through the volume driver under test to a real service."""

    def __init__(self, qemu_version: int = QEMU_10) -> None:
        self.guest: Guest | None = None
        self._host = SimpleNamespace(get_version=lambda: qemu_version, get_guest=self._get_guest)
        self.volumes = volume.LibvirtPolluxVolumeDriver(self._host)
        self.by_libvirt: list[str] = []
        self.backing: Any = None
        self.metadata: Any = None

    def _get_guest(self, instance: Any) -> Guest:
        if self.guest is None:
            raise exception.InstanceNotFound(instance_id=instance.uuid)
        return self.guest

    def _get_guest_memory_backing_config(self, inst_topology: Any, numatune: Any, flavor: Any, image_meta: Any) -> Any:
        return inst_topology

    def _get_guest_config(
        self,
        instance: Any,
        network_info: Any,
        image_meta: Any,
        disk_info: Any,
        rescue: Any = None,
        block_device_info: Any = None,
    ) -> Any:
        guest = vconfig.LibvirtConfigGuest()
        guest.virt_type, guest.name, guest.uuid = "qemu", "instance-1", instance.uuid
        guest.memory, guest.vcpus = 65536, instance.flavor.vcpus
        guest.os_type, guest.os_mach_type, guest.os_boot_dev = "hvm", "q35", ["hd"]
        guest.membacking = self._get_guest_memory_backing_config(self.backing, None, None, None)
        for device in (block_device_info or {}).get("block_device_mapping", []):
            self._connect_volume(None, device["connection_info"], instance)
            disk = {"dev": device["mount_device"].rpartition("/")[2], "bus": "virtio", "type": "disk"}
            guest.add_device(self.volumes.get_config(device["connection_info"], disk))
        return guest

    def _connect_volume(self, context: Any, connection_info: Any, instance: Any, encryption: Any = None) -> None:
        self.volumes.connect_volume(connection_info, instance)

    def _disconnect_volume(self, context: Any, connection_info: Any, instance: Any, encryption: Any = None) -> None:
        self.volumes.disconnect_volume(connection_info, instance)

    def _extend_volume(self, connection_info: Any, instance: Any, requested_size: Any) -> int:
        return self.volumes.extend_volume(connection_info, instance, requested_size)

    def attach_volume(
        self,
        context: Any,
        connection_info: Any,
        instance: Any,
        mountpoint: Any,
        disk_bus: Any = None,
        device_type: Any = None,
        encryption: Any = None,
    ) -> None:
        self.by_libvirt.append(f"attach {disk_bus}")

    def detach_volume(
        self, context: Any, connection_info: Any, instance: Any, mountpoint: Any, encryption: Any = None
    ) -> None:
        self.by_libvirt.append("detach")

    def extend_volume(self, context: Any, connection_info: Any, instance: Any, requested_size: Any) -> None:
        self.by_libvirt.append("extend")

    def swap_volume(
        self,
        context: Any,
        old_connection_info: Any,
        new_connection_info: Any,
        instance: Any,
        mountpoint: Any,
        resize_to: Any,
    ) -> None:
        self.by_libvirt.append("swap")

    def _should_disconnect_target(
        self, context: Any, instance: Any, multiattach: Any, vol_driver: Any, volume_id: Any
    ) -> bool:
        return False

    def _build_device_metadata(self, context: Any, instance: Any) -> Any:
        return self.metadata

    def pre_live_migration(self, context: Any, instance: Any, block_device_info: Any) -> None:
        for device in block_device_info["block_device_mapping"]:
            self._connect_volume(None, device["connection_info"], instance)

    def post_live_migration_at_destination(self, context: Any, instance: Any) -> None:
        pass

    def post_live_migration_at_source(self, context: Any, instance: Any) -> None:
        pass

    def cleanup(self, context: Any, instance: Any) -> None:
        pass

    def _cleanup_resize(self, context: Any, instance: Any) -> None:
        pass


wraps.check(NovaDriver)
wraps.install(NovaDriver)


@pytest.fixture(autouse=True)
def _configured(service: Service) -> Iterator[None]:
    objects.register_all()
    options.register(CONF)
    CONF.set_override("virt_type", "qemu", group="libvirt")
    settings = service.settings("compute")
    given = {"address": settings.address, "ca": settings.ca, "certificate": settings.certificate, "key": settings.key}
    assert hook.enable()
    clients.configure(given)
    yield
    clients.configure({})
    CONF.reset()
    for name in ("prepared_guests", "max_queues"):
        CONF.clear_override(name, group="pollux")


@pytest.fixture
def instance() -> Any:
    return SimpleNamespace(
        uuid=new_id(),
        host=CONF.host,
        flavor=SimpleNamespace(vcpus=2, extra_specs={}),
        system_metadata={},
        save=lambda: None,
    )


@pytest.fixture(autouse=True)
def _no_mappings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nova's database has no devices of the guests here."""
    monkeypatch.setattr(
        objects.BlockDeviceMappingList,
        "get_by_instance_uuid",
        lambda context, uuid: objects.BlockDeviceMappingList(objects=[]),
    )


@pytest.fixture
def _all_prepared() -> None:
    CONF.set_override("prepared_guests", "all", group="pollux")


@pytest.fixture
def driver(service: Service, instance: Any) -> Iterator[NovaDriver]:
    made = NovaDriver()
    yield made
    made.cleanup(None, instance)


@pytest.fixture
def connection_of(service: Service) -> Iterator[Any]:
    """Makes volumes that this host may attach; their connection_info."""
    made: list[str] = []
    cinder = service.client("cinder")

    def make(transport: str) -> dict[str, Any]:
        volume_id = service.create_volume().volume_id
        made.append(volume_id)
        cinder.authorise(rpc.Authorisation(volume_id=volume_id, host=COMPUTE_HOST))
        one = connection.Connection(
            volume_id=volume_id,
            transport=transport,
            home="test-host",
            serial=connection.serial_of(volume_id, transport),
        )
        return {"driver_volume_type": "pollux", "data": one.as_data(), "serial": volume_id}

    yield make
    for volume_id in made:
        cinder.unauthorise(volume_id, "")
        cinder.volume_delete(volume_id)


def guest_config(driver: NovaDriver, instance: Any, *volumes: dict[str, Any], rescue: Any = None) -> str:
    mapping = [{"connection_info": info, "mount_device": f"/dev/vd{'abc'[i]}"} for i, info in enumerate(volumes)]
    disk_info = {"mapping": {"root": {"dev": "vda"}}}
    config = driver._get_guest_config(
        instance, [], None, disk_info, rescue, block_device_info={"block_device_mapping": mapping}
    )
    text: str = config.to_xml()
    return text


# ---------------------------------------------------------------- starting guests


def test_a_guest_boots_from_its_scsi_volume(
    driver: NovaDriver, service: Service, instance: Any, connection_of: Any, tmp_path: Path
) -> None:
    root, data = connection_of("scsi"), connection_of("scsi")
    text = guest_config(driver, instance, root, data)
    libvirt_accepts(text, tmp_path)
    attached = {one.volume_id: one for one in service.client().attachment_list(client_id=instance.uuid)}
    boot = attached[root["data"]["volume_id"]]
    chardev, device = arguments(text)[1::2]
    assert chardev == f"socket,id=pollux-scsi,path={boot.socket_path},reconnect-ms=1000"
    assert "num_queues=2" in device
    assert f"bootindex=0,boot_tpgt={boot.target}" in device
    assert "bus=pcie.0,addr=0x1c" in device
    assert "<disk" not in text
    assert Path(boot.socket_path).is_socket()


def test_the_boot_target_is_that_of_the_root_volume(
    driver: NovaDriver, service: Service, instance: Any, connection_of: Any
) -> None:
    root, data = connection_of("scsi"), connection_of("scsi")
    # The data volume was there before, and so has the first target.
    driver._connect_volume(None, data, instance)
    text = guest_config(driver, instance, root, data)
    targets = {one.volume_id: one.target for one in service.client().attachment_list(client_id=instance.uuid)}
    assert targets[root["data"]["volume_id"]] != targets[data["data"]["volume_id"]]
    assert f"boot_tpgt={targets[root['data']['volume_id']]}" in arguments(text)[3]


def test_a_guest_boots_from_its_blk_volume_and_has_a_controller_for_others(
    driver: NovaDriver, service: Service, instance: Any, connection_of: Any, tmp_path: Path
) -> None:
    root = connection_of("blk")
    text = guest_config(driver, instance, root)
    libvirt_accepts(text, tmp_path)
    disk = ElementTree.fromstring(text).find("./devices/disk")
    (attached,) = service.client().attachment_list(client_id=instance.uuid)
    assert disk.get("type") == "vhostuser"
    assert disk.find("source").get("path") == attached.socket_path
    assert disk.find("source/reconnect").attrib == {"enabled": "yes", "timeout": "1"}
    assert disk.find("driver").attrib == {"name": "qemu", "type": "raw", "queues": "2"}
    assert disk.find("target").attrib == {"dev": "vda", "bus": "virtio"}
    assert disk.find("alias").get("name") == f"ua-{root['serial']}"
    for refused in ("serial", "iotune", "shareable", "readonly", "encryption"):
        assert disk.find(refused) is None
    assert "bootindex" not in arguments(text)[3]


def test_a_rescued_guest_boots_from_its_rescue_image(driver: NovaDriver, instance: Any, connection_of: Any) -> None:
    text = guest_config(driver, instance, connection_of("scsi"), rescue={"image_id": "x"})
    assert "bootindex" not in arguments(text)[3]


def controller_exists(service: Service, instance: Any) -> bool:
    return any((service.polluxd.folder / "run" / "vhost").glob(f"scsi-{instance.uuid}.sock"))


def test_a_guest_without_our_volumes_is_as_nova_makes_it(driver: NovaDriver, service: Service, instance: Any) -> None:
    text = guest_config(driver, instance)
    assert not xml.has_controller(text)
    assert not xml.has_shared_memory(text)
    assert not controller_exists(service, instance)


@pytest.mark.parametrize("transport", ["scsi", "blk"])
def test_a_guest_that_starts_with_a_volume_can_have_more(
    driver: NovaDriver, instance: Any, connection_of: Any, transport: str
) -> None:
    text = guest_config(driver, instance, connection_of(transport))
    assert xml.has_controller(text)
    assert xml.has_shared_memory(text)
    # What the next guest of this thread gets is not decided by this one.
    assert not xml.has_shared_memory(guest_config(driver, instance))


@pytest.mark.parametrize(
    ("option", "image", "flavor", "prepared"),
    [
        ("all", None, None, True),
        ("all", None, "false", False),
        ("all", "false", None, False),
        ("with_volumes", "true", None, True),
        ("with_volumes", None, "true", True),
        ("with_volumes", "true", "false", False),
        ("with_volumes", "false", "true", True),
    ],
)
def test_guests_are_prepared_for_volumes_where_it_is_asked_for(
    driver: NovaDriver,
    instance: Any,
    tmp_path: Path,
    option: str,
    image: str | None,
    flavor: str | None,
    prepared: bool,
) -> None:
    CONF.set_override("prepared_guests", option, group="pollux")
    if image:
        instance.system_metadata["image_pollux_prepared"] = image
    if flavor:
        instance.flavor.extra_specs["pollux:prepared"] = flavor
    text = guest_config(driver, instance)
    libvirt_accepts(text, tmp_path)
    assert (xml.has_controller(text), xml.has_shared_memory(text)) == (prepared, prepared)


# ---------------------------------------------------------------- guests that move


def test_a_controller_is_at_the_destination_before_the_guest_comes(
    driver: NovaDriver, service: Service, instance: Any, connection_of: Any
) -> None:
    # Here nothing tells whether the guest has a controller: its last volume may be gone.
    driver.pre_live_migration(None, instance, {"block_device_mapping": []})
    assert controller_exists(service, instance)
    driver.guest = Guest("<domain/>")
    driver.post_live_migration_at_destination(None, instance)
    assert not controller_exists(service, instance)

    info = connection_of("scsi")
    driver.pre_live_migration(None, instance, {"block_device_mapping": [{"connection_info": info}]})
    (attached,) = service.client().attachment_list(client_id=instance.uuid)
    assert attached.queues == volume.queue_count(instance.flavor.vcpus)
    driver.guest = None
    driver.guest = Guest(guest_config(driver, instance, info))
    driver.post_live_migration_at_destination(None, instance)
    assert controller_exists(service, instance)
    # At the source the guest ends, and with it what it had there.
    driver.post_live_migration_at_source(None, instance)
    assert controller_exists(service, instance)
    driver.guest.running = False
    driver.post_live_migration_at_source(None, instance)
    assert not controller_exists(service, instance)


def test_a_guest_that_was_resized_to_another_host_leaves_nothing(
    driver: NovaDriver, service: Service, instance: Any, connection_of: Any
) -> None:
    guest_config(driver, instance, connection_of("scsi"))
    driver._cleanup_resize(None, instance)
    assert controller_exists(service, instance)
    instance.host = "another"
    driver._cleanup_resize(None, instance)
    assert not controller_exists(service, instance)


def test_migration_of_guests_without_our_volumes_needs_no_service(instance: Any, service: Service) -> None:
    settings = service.settings("compute")
    clients.configure({"address": "127.0.0.1:1", "connect_ms": 200, "ca": settings.ca,
                       "certificate": settings.certificate, "key": settings.key})
    driver = NovaDriver()
    driver.pre_live_migration(None, instance, {"block_device_mapping": []})
    driver.guest = Guest("<domain/>")
    driver.post_live_migration_at_destination(None, instance)
    instance.flavor.extra_specs["pollux:prepared"] = "true"
    with pytest.raises(exception.NovaException, match="no scsi controller"):
        driver.pre_live_migration(None, instance, {"block_device_mapping": []})


# ---------------------------------------------------------------- queues, QEMU's words, memory


def test_a_resized_guest_gets_a_controller_with_other_queues(
    driver: NovaDriver, instance: Any, connection_of: Any
) -> None:
    root = connection_of("scsi")
    assert "num_queues=2" in arguments(guest_config(driver, instance, root))[3]
    instance.flavor.vcpus = 64
    assert f"num_queues={CONF.pollux.max_queues}" in arguments(guest_config(driver, instance, root))[3]


@pytest.mark.usefixtures("_all_prepared")
@pytest.mark.parametrize("volumes", [("scsi",), ("blk",), ("scsi", "blk"), ()])
def test_a_guest_that_runs_keeps_what_it_has_when_it_is_rescued_with_other_queues(
    driver: NovaDriver, service: Service, instance: Any, connection_of: Any, volumes: tuple[str, ...]
) -> None:
    instance.flavor.vcpus = 4
    infos = [connection_of(transport) for transport in volumes]
    driver.guest = Guest(guest_config(driver, instance, *infos))
    if not infos:
        hot = connection_of("scsi")
        driver.attach_volume(None, hot, instance, "/dev/vdb")
    before = service.client().attachment_list(client_id=instance.uuid)
    CONF.set_override("max_queues", 1, group="pollux")
    # Nova writes the rescue's configuration while the guest runs: a stable one has the volumes, the other has none.
    for attached in (infos, []):
        rescue = guest_config(driver, instance, *attached, rescue={"image_id": "x"})
        assert service.client().attachment_list(client_id=instance.uuid) == before
        assert arguments(rescue) == [
            one.split(",bootindex")[0] for one in arguments(driver.guest.domain_xml)
        ]
    # Once it does not run, the new number counts.
    driver.guest.running = False
    text = guest_config(driver, instance, *infos)
    assert "num_queues=1," in arguments(text)[3]
    queues = {one.queues for one in service.client().attachment_list(client_id=instance.uuid)}
    assert queues == ({1} if infos else set())


def test_without_the_service_only_guests_that_need_it_fail(instance: Any, connection_of: Any, service: Service) -> None:
    settings = service.settings("compute")
    info = connection_of("scsi")
    clients.configure(
        {
            "address": "127.0.0.1:1",
            "connect_ms": 200,
            "ca": settings.ca,
            "certificate": settings.certificate,
            "key": settings.key,
        }
    )
    driver = NovaDriver()
    assert not xml.has_controller(guest_config(driver, instance))
    CONF.set_override("prepared_guests", "all", group="pollux")
    assert not xml.has_controller(guest_config(driver, instance))
    with pytest.raises(exception.NovaException, match="no scsi controller"):
        guest_config(driver, instance, info)


@pytest.mark.parametrize(
    ("version", "option"), [(QEMU_7_2, None), (QEMU_8_2, ",reconnect=1"), (QEMU_10, ",reconnect-ms=1000")]
)
def test_qemu_is_told_to_reconnect_in_its_own_words(version: int, option: str | None) -> None:
    controller = xml.Controller(socket="/run/a,b.sock", queues=1, bus="pci.0", slot=29)
    chardev = xml.controller_commandline(controller, version)[1].get("value")
    assert chardev == f"socket,id=pollux-scsi,path=/run/a,,b.sock{option or ''}"
    assert xml.can_reconnect(version) is (option is not None)


@pytest.mark.usefixtures("_all_prepared")
def test_memory_is_shared_unless_nova_shares_it_already(driver: NovaDriver, instance: Any) -> None:
    def backing(original: Any) -> Any:
        driver.backing = original
        return driver._get_guest_config(instance, [], None, {"mapping": {}}).membacking

    locked, files = vconfig.LibvirtConfigGuestMemoryBacking(), vconfig.LibvirtConfigGuestMemoryBacking()
    locked.locked, files.filesource = True, True
    assert "memfd" in backing(None).to_xml()
    assert "<locked/>" in backing(locked).to_xml()
    assert 'mode="shared"' in backing(locked).to_xml()
    assert backing(files) is files
    domain = "<domain><memoryBacking>{}</memoryBacking></domain>"
    assert xml.has_shared_memory(domain.format('<source type="memfd"/><access mode="shared"/>'))
    assert not xml.has_shared_memory(domain.format('<source type="memfd"/>'))
    cells = "<domain><cpu><numa><cell memAccess='shared'/><cell{}/></numa></cpu></domain>"
    assert xml.has_shared_memory(cells.format(" memAccess='shared'"))
    assert not xml.has_shared_memory(cells.format(""))


# ---------------------------------------------------------------- guests that run


@pytest.mark.usefixtures("_all_prepared")
def test_a_scsi_volume_comes_and_goes_without_libvirt(
    driver: NovaDriver, service: Service, instance: Any, connection_of: Any
) -> None:
    driver.guest = Guest(guest_config(driver, instance))
    info = connection_of("scsi")
    driver.attach_volume(None, info, instance, "/dev/vdb")
    (attached,) = service.client().attachment_list(client_id=instance.uuid)
    assert attached.socket_path in arguments(driver.guest.domain_xml)[1]
    driver.detach_volume(None, info, instance, "/dev/vdb")
    assert service.client().attachment_list(client_id=instance.uuid) == []
    assert driver.by_libvirt == []


@pytest.mark.usefixtures("_all_prepared")
def test_the_tag_of_a_scsi_volume_is_told_with_its_place(
    driver: NovaDriver, instance: Any, connection_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tagged, plain, local = connection_of("scsi"), connection_of("scsi"), new_id()
    tags = {plain["data"]["volume_id"]: None, tagged["data"]["volume_id"]: "database", local: "scratch"}
    mappings = [objects.BlockDeviceMapping(volume_id=one, tag=tag) for one, tag in tags.items()]
    monkeypatch.setattr(
        objects.BlockDeviceMappingList,
        "get_by_instance_uuid",
        lambda context, uuid: objects.BlockDeviceMappingList(objects=mappings),
    )
    driver.guest = Guest(guest_config(driver, instance))
    driver.attach_volume(None, plain, instance, "/dev/vdb")
    assert instance.device_metadata is None
    nic = objects.NetworkInterfaceMetadata(mac="52:54:00:00:00:01", tags=["net"])
    driver.metadata = objects.InstanceDeviceMetadata(devices=[nic])
    driver.attach_volume(None, tagged, instance, "/dev/vdc")
    first, second = instance.device_metadata.devices
    assert first is nic
    assert (second.tags, second.serial) == (["database"], tagged["data"]["volume_id"])
    # The second target of the controller.
    assert second.bus.address == "0:0:1:0"


@pytest.mark.usefixtures("_all_prepared")
def test_a_blk_volume_is_attached_by_libvirt_as_virtio(driver: NovaDriver, instance: Any, connection_of: Any) -> None:
    driver.guest = Guest(guest_config(driver, instance))
    info = connection_of("blk")
    driver.attach_volume(None, info, instance, "/dev/sdb", disk_bus="scsi")
    driver.detach_volume(None, info, instance, "/dev/sdb")
    assert driver.by_libvirt == ["attach virtio", "detach"]


def test_a_guest_without_controller_is_told_what_to_do(
    driver: NovaDriver, service: Service, instance: Any, connection_of: Any
) -> None:
    # With memory that is shared for another reason.
    driver.guest = Guest("<domain><memoryBacking><access mode='shared'/></memoryBacking></domain>")
    info = connection_of("scsi")
    with pytest.raises(exception.VolumeAttachFailed, match="Stop the server, attach the volume, and start it"):
        driver.attach_volume(None, info, instance, "/dev/vdb")
    assert service.client().attachment_list(client_id=instance.uuid) == []
    driver.guest.running = False
    driver.attach_volume(None, info, instance, "/dev/vdb")
    assert len(service.client().attachment_list(client_id=instance.uuid)) == 1


@pytest.mark.parametrize("transport", ["scsi", "blk"])
def test_a_guest_without_shared_memory_is_told_what_to_do(
    driver: NovaDriver, instance: Any, connection_of: Any, transport: str
) -> None:
    driver.guest = Guest("<domain/>")
    with pytest.raises(exception.VolumeAttachFailed, match="memory"):
        driver.attach_volume(None, connection_of(transport), instance, "/dev/vdb")


def test_a_volume_that_grew_is_not_resized_by_libvirt(
    driver: NovaDriver, service: Service, instance: Any, connection_of: Any
) -> None:
    info = connection_of("blk")
    service.client("cinder").volume_extend(info["data"]["volume_id"], 2 << 30)
    driver.extend_volume(None, info, instance, 2 << 30)
    assert driver.by_libvirt == []
    with pytest.raises(exception.VolumeExtendFailed, match="asked for"):
        driver.extend_volume(None, info, instance, 3 << 30)


def test_volumes_of_others_are_left_to_nova(driver: NovaDriver, instance: Any) -> None:
    other = {"driver_volume_type": "iscsi", "data": {"transport": "scsi"}}
    driver.attach_volume(None, other, instance, "/dev/vdb", disk_bus="ide")
    driver.detach_volume(None, other, instance, "/dev/vdb")
    driver.extend_volume(None, other, instance, 1)
    driver.swap_volume(None, other, other, instance, "/dev/vdb", 0)
    assert driver.by_libvirt == ["attach ide", "detach", "extend", "swap"]
    assert driver._should_disconnect_target(None, instance, True, object(), "x") is False


def test_each_guest_disconnects_its_own_attachment(driver: NovaDriver, instance: Any) -> None:
    assert driver._should_disconnect_target(None, instance, True, driver.volumes, "x") is True


def test_swapping_a_volume_is_refused(driver: NovaDriver, instance: Any, connection_of: Any) -> None:
    info = connection_of("blk")
    with pytest.raises(exception.VolumeRebaseFailed, match="Detach"):
        driver.swap_volume(None, info, {"driver_volume_type": "iscsi"}, instance, "/dev/vdb", 0)


def test_nothing_of_a_guest_is_left_when_it_leaves(
    driver: NovaDriver, service: Service, instance: Any, connection_of: Any
) -> None:
    text = guest_config(driver, instance, connection_of("scsi"), connection_of("blk"))
    socket = Path(arguments(text)[1].split("path=")[1].split(",")[0])
    assert socket.is_socket()
    driver.cleanup(None, instance)
    assert not socket.exists()
    assert service.client().attachment_list(client_id=instance.uuid) == []


# ---------------------------------------------------------------- the hook


def test_the_hook_knows_the_nova_that_is_installed() -> None:
    assert hook.enable()
    assert libvirt_driver.VOLUME_DRIVERS["pollux"] == hook.VOLUME_DRIVER
    methods = vars(libvirt_driver.LibvirtDriver)
    wrapped = {name: method.pollux_original for name, method in methods.items() if hasattr(method, "pollux_original")}
    assert set(wrapped) == {wrap.__name__ for wrap in wraps._WRAPS}
    # Being enabled several times has not wrapped anything twice.
    assert not [name for name, original in wrapped.items() if hasattr(original, "pollux_original")]


@pytest.mark.parametrize("name", ["attach_volume", "_get_guest_config", "_connect_volume"])
def test_an_unknown_nova_is_left_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    class Other(libvirt_driver.LibvirtDriver):
        pass

    setattr(Other, name, lambda self, something, different: None)
    monkeypatch.setattr(libvirt_driver, "LibvirtDriver", Other)
    monkeypatch.setattr(libvirt_driver, "VOLUME_DRIVERS", {})
    with pytest.raises(errors.Unsupported, match=f"{name} takes something, different"):
        wraps.check(Other)
    assert hook.enable() is False
    assert libvirt_driver.VOLUME_DRIVERS == {}


def test_the_plugin_loads_and_plugs_nothing() -> None:
    plugin = hook.PolluxPlugin.load("pollux")
    assert list(plugin.describe().vif_info) == []
    with pytest.raises(NotImplementedError):
        plugin.plug(None, None)


def test_the_entry_point_is_where_nova_compute_looks() -> None:
    import importlib.metadata

    (found,) = importlib.metadata.entry_points(group="os_vif", name="pollux")
    assert found.load() is hook.PolluxPlugin
