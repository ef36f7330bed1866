"""The methods of Nova's LibvirtDriver that Pollux wraps. Each calls the original for everything that is not ours.

| method | what is added |
| --- | --- |
| `_get_guest_memory_backing_config` | memory that the service can map, for guests that are prepared for volumes |
| `_get_guest_config` | the scsi controller, for the same guests; volumes on it leave the list of devices |
| `attach_volume`, `detach_volume` | scsi volumes come and go on the controller, without libvirt |
| `extend_volume` | no block resize: the service has told the guest |
| `swap_volume` | refused: QEMU has no block layer beneath such a disk to copy with |
| `_should_disconnect_target` | always: each guest has an attachment of its own |
| `_build_device_metadata` | tags of scsi volumes, which libvirt's XML does not have |
| `pre_live_migration` | the scsi controller is there before the guest comes |
| `post_live_migration_at_destination`, `post_live_migration_at_source` | and goes where it is not used |
| `cleanup`, `_cleanup_resize` | the controller goes when the guest leaves the host |

`install` checks the names of all parameters first, and changes nothing when one differs.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
from collections.abc import Callable
from typing import Any

import nova.conf
from nova import exception, objects
from nova.virt import driver as virt_driver
from nova.virt.libvirt import config as vconfig
from oslo_log import log as logging

from pollux import errors
from pollux.nova import guests, metadata, volume, xml

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)

_PREPARE = ('Stop the server, attach the volume, and start it. A server is prepared for volumes that come later by the '
            'extra spec pollux:prepared=true of its flavor, the property pollux_prepared=true of its image, or the '
            'option prepared_guests of nova-compute, from its next start on')

_VIRT_TYPES = ('qemu', 'kvm')
#: Whether the guest whose configuration is being made is prepared for volumes.
_prepared: contextvars.ContextVar[bool] = contextvars.ContextVar('pollux_prepared', default=False)


class SharedMemory(vconfig.LibvirtConfigGuestMemoryBacking):
    """Memory in a file descriptor that QEMU can hand to the service."""

    def format_dom(self) -> Any:
        root = super().format_dom()
        root.append(vconfig.etree.Element('source', type='memfd'))
        root.append(vconfig.etree.Element('access', mode='shared'))
        return root


def _get_guest_memory_backing_config(original: Callable[..., Any], driver: Any, *arguments: Any,
                                     **options: Any) -> Any:
    backing = original(driver, *arguments, **options)
    if not _prepared.get() or (backing and (backing.hugepages or backing.filesource)):
        # Huge pages and file-backed memory are shared already.
        return backing
    shared = SharedMemory()
    if backing:
        shared.__dict__.update(vars(backing))
    return shared


def _get_guest_config(original: Callable[..., Any], driver: Any, instance: Any, network_info: Any, image_meta: Any,
                      disk_info: Any, rescue: Any = None, block_device_info: Any = None, *arguments: Any,
                      **options: Any) -> Any:
    mapping = virt_driver.block_device_info_get_mapping(block_device_info)
    ours = [device['connection_info'] for device in mapping if volume.is_pollux(device['connection_info'])]
    prepared = CONF.libvirt.virt_type in _VIRT_TYPES and (bool(ours) or guests.wants_preparation(instance))
    # Before the volumes are connected: the first of them would make a controller with the service's number of queues.
    queues = volume.queue_count(instance.flavor.vcpus)
    socket, queues = _controller(driver, instance, queues, any(map(volume.is_scsi, ours))) if prepared else (None, 0)
    token = _prepared.set(prepared)
    try:
        guest = original(driver, instance, network_info, image_meta, disk_info, rescue, block_device_info, *arguments,
                         **options)
    finally:
        _prepared.reset(token)
    on_controller = [device for device in guest.devices if isinstance(device, volume.ScsiVolume)]
    guest.devices = [device for device in guest.devices if not isinstance(device, volume.ScsiVolume)]
    if socket:
        version = driver._host.get_version()
        if not xml.can_reconnect(version):
            LOG.warning('QEMU is older than 8.2: when polluxd restarts, this guest loses its scsi volumes until it is '
                        'started again. Use transport blk, or a newer QEMU', instance=instance)
        root_device = None if rescue else disk_info['mapping'].get('root', {}).get('dev')
        boot_target = next((one.target for one in on_controller if one.target_dev == root_device), None)
        _add_controller(guest, xml.Controller(socket=socket, queues=queues, bus=xml.root_bus(guest.os_mach_type),
                                              slot=CONF.pollux.scsi_pci_slot, boot_target=boot_target), version)
    return guest


def _controller(driver: Any, instance: Any, queues: int, needed: bool) -> tuple[str | None, int]:
    """Socket and number of queues of the guest's controller; no socket where there is none and none is needed."""
    try:
        return guests.ensure_controller(instance, queues, guests.running_xml(driver._host, instance))
    except errors.PolluxError as error:
        if needed:
            raise exception.NovaException(f'The guest gets no scsi controller: {error}') from error
        LOG.warning('The guest is without a scsi controller, and no scsi volume can be attached to it until it is '
                    'started again: %s', error, instance=instance)
        return None, 0


def _add_controller(guest: Any, controller: xml.Controller, qemu_version: int) -> None:
    """Have the guest's XML end with the controller. Nova's class has no place for elements of other name spaces."""
    plain = guest.format_dom

    def format_dom() -> Any:
        root = plain()
        root.append(xml.controller_commandline(controller, qemu_version))
        return root
    guest.format_dom = format_dom


def attach_volume(original: Callable[..., Any], driver: Any, context: Any, connection_info: Any, instance: Any,
                  mountpoint: Any, disk_bus: Any = None, device_type: Any = None, encryption: Any = None) -> Any:
    if not volume.is_pollux(connection_info):
        return original(driver, context, connection_info, instance, mountpoint, disk_bus=disk_bus,
                        device_type=device_type, encryption=encryption)
    volume_id = connection_info['data'].get('volume_id')
    domain = guests.running_xml(driver._host, instance)
    if domain is not None and not xml.has_shared_memory(domain):
        raise exception.VolumeAttachFailed(volume_id=volume_id, reason=(
            f'the server was started without memory that the Pollux service can reach. {_PREPARE}'))
    if not volume.is_scsi(connection_info):
        return original(driver, context, connection_info, instance, mountpoint, disk_bus='virtio',
                        device_type=device_type, encryption=encryption)
    if domain is not None and not xml.has_controller(domain):
        raise exception.VolumeAttachFailed(volume_id=volume_id, reason=(
            f'the server was started without a scsi controller of Pollux. {_PREPARE}; or use a volume type with '
            'pollux:transport=blk'))
    # A guest that does not run finds the volume on its controller when it starts.
    driver._connect_volume(context, connection_info, instance, encryption=encryption)
    if domain is not None:
        # As Nova does after each attachment of its own.
        instance.device_metadata = driver._build_device_metadata(context, instance)
        instance.save()
    return None


def detach_volume(original: Callable[..., Any], driver: Any, context: Any, connection_info: Any, instance: Any,
                  mountpoint: Any, encryption: Any = None) -> Any:
    if not volume.is_scsi(connection_info):
        return original(driver, context, connection_info, instance, mountpoint, encryption=encryption)
    driver._disconnect_volume(context, connection_info, instance, encryption=encryption)
    return None


def extend_volume(original: Callable[..., Any], driver: Any, context: Any, connection_info: Any, instance: Any,
                  requested_size: Any) -> Any:
    if not volume.is_pollux(connection_info):
        return original(driver, context, connection_info, instance, requested_size)
    driver._extend_volume(connection_info, instance, requested_size)
    return None


def swap_volume(original: Callable[..., Any], driver: Any, context: Any, old_connection_info: Any,
                new_connection_info: Any, instance: Any, mountpoint: Any, resize_to: Any) -> Any:
    if not (volume.is_pollux(old_connection_info) or volume.is_pollux(new_connection_info)):
        return original(driver, context, old_connection_info, new_connection_info, instance, mountpoint, resize_to)
    raise exception.VolumeRebaseFailed(reason='a volume of Pollux cannot be exchanged while a server uses it. Detach '
                                              'it from the server, change it, and attach it again')


def _should_disconnect_target(original: Callable[..., Any], driver: Any, context: Any, instance: Any,
                              multiattach: Any, vol_driver: Any, volume_id: Any) -> Any:
    if isinstance(vol_driver, volume.LibvirtPolluxVolumeDriver):
        return True
    return original(driver, context, instance, multiattach, vol_driver, volume_id)


def _build_device_metadata(original: Callable[..., Any], driver: Any, context: Any, instance: Any) -> Any:
    found = original(driver, context, instance)
    ours = metadata.tagged_volumes(context, instance)
    if not ours:
        return found
    return objects.InstanceDeviceMetadata(devices=[*(found.devices if found else []), *ours])


def pre_live_migration(original: Callable[..., Any], driver: Any, context: Any, instance: Any, block_device_info: Any,
                       *arguments: Any, **options: Any) -> Any:
    mapping = virt_driver.block_device_info_get_mapping(block_device_info)
    needed = any(volume.is_scsi(device['connection_info']) for device in mapping) or guests.wants_preparation(instance)
    # QEMU waits without end for a socket that is not there. A guest may have a controller of a volume that has left it,
    # which nothing says here: so each gets one, and `post_live_migration_at_destination` takes it from those without.
    if CONF.libvirt.virt_type in _VIRT_TYPES:
        _controller(driver, instance, volume.queue_count(instance.flavor.vcpus), needed)
    return original(driver, context, instance, block_device_info, *arguments, **options)


def post_live_migration_at_destination(original: Callable[..., Any], driver: Any, context: Any, instance: Any,
                                       *arguments: Any, **options: Any) -> Any:
    result = original(driver, context, instance, *arguments, **options)
    domain = guests.running_xml(driver._host, instance)
    if domain is not None and not xml.has_controller(domain):
        _release(instance, controller_alone=True)
    return result


def post_live_migration_at_source(original: Callable[..., Any], driver: Any, context: Any, instance: Any,
                                  *arguments: Any, **options: Any) -> Any:
    result = original(driver, context, instance, *arguments, **options)
    # Nova calls `cleanup` only where the instance's folder is not shared.
    if guests.running_xml(driver._host, instance) is None:
        _release(instance)
    return result


def cleanup(original: Callable[..., Any], driver: Any, context: Any, instance: Any, *arguments: Any,
            **options: Any) -> Any:
    result = original(driver, context, instance, *arguments, **options)
    _release(instance)
    return result


def _cleanup_resize(original: Callable[..., Any], driver: Any, context: Any, instance: Any, *arguments: Any,
                    **options: Any) -> Any:
    result = original(driver, context, instance, *arguments, **options)
    if instance.host != CONF.host:
        # Confirming a resize to another host calls this alone.
        _release(instance)
    return result


def _release(instance: Any, *, controller_alone: bool = False) -> None:
    try:
        guests.release(instance, controller_alone=controller_alone)
    except errors.PolluxError as error:
        # A guest must be deletable without the service; the next start or deletion of it tries again.
        LOG.warning('What the guest had on the Pollux service stays there for now: %s', error, instance=instance)


#: Wrap and the parameters, after self, that the original must have at least, in this order.
_WRAPS: dict[Callable[..., Any], tuple[str, ...]] = {
    _get_guest_memory_backing_config: ('inst_topology', 'numatune', 'flavor', 'image_meta'),
    _get_guest_config: ('instance', 'network_info', 'image_meta', 'disk_info', 'rescue', 'block_device_info'),
    attach_volume: ('context', 'connection_info', 'instance', 'mountpoint', 'disk_bus', 'device_type', 'encryption'),
    detach_volume: ('context', 'connection_info', 'instance', 'mountpoint', 'encryption'),
    extend_volume: ('context', 'connection_info', 'instance', 'requested_size'),
    swap_volume: ('context', 'old_connection_info', 'new_connection_info', 'instance', 'mountpoint', 'resize_to'),
    _should_disconnect_target: ('context', 'instance', 'multiattach', 'vol_driver', 'volume_id'),
    _build_device_metadata: ('context', 'instance'),
    pre_live_migration: ('context', 'instance', 'block_device_info'),
    post_live_migration_at_destination: ('context', 'instance'),
    post_live_migration_at_source: ('context', 'instance'),
    cleanup: ('context', 'instance'),
    _cleanup_resize: ('context', 'instance'),
}
#: Used by the wraps, and so required as well.
_USED: dict[str, tuple[str, ...]] = {
    '_connect_volume': ('context', 'connection_info', 'instance', 'encryption'),
    '_disconnect_volume': ('context', 'connection_info', 'instance', 'encryption'),
    '_extend_volume': ('connection_info', 'instance', 'requested_size'),
}


def check(driver_class: type) -> None:
    """Raises Unsupported, naming the first method that is not as expected."""
    expected = {wrap.__name__: names for wrap, names in _WRAPS.items()} | _USED
    for name, names in expected.items():
        method = getattr(driver_class, name, None)
        if method is None:
            raise errors.Unsupported(f'{driver_class.__name__} has no method {name}')
        found = tuple(inspect.signature(method).parameters)[1:]
        if found[:len(names)] != names:
            raise errors.Unsupported(f'{driver_class.__name__}.{name} takes {", ".join(found)}; '
                                     f'expected is {", ".join(names)}')


def install(driver_class: type) -> None:
    """Wrap the methods of `driver_class`. A method that is wrapped already stays as it is."""
    for wrap in _WRAPS:
        original = getattr(driver_class, wrap.__name__)
        if not hasattr(original, 'pollux_original'):
            setattr(driver_class, wrap.__name__, _bind(wrap, original))


def _bind(wrap: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapped(driver: Any, *arguments: Any, **options: Any) -> Any:
        return wrap(original, driver, *arguments, **options)
    wrapped.pollux_original = original  # type: ignore[attr-defined]
    return wrapped
