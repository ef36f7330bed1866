"""The libvirt volume driver for connections of type 'pollux'."""

from __future__ import annotations

from typing import Any

import nova.conf
from nova import exception, utils
from nova.virt import block_device as driver_block_device
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt.volume import volume as libvirt_volume
from os_brick import exception as brick_exception
from os_brick.initiator import connector as brick_connector
from oslo_log import log as logging

from pollux import connection
from pollux.nova import guests, xml

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)


def is_pollux(connection_info: dict[str, Any] | None) -> bool:
    return connection_info is not None and connection_info.get('driver_volume_type') == connection.PROTOCOL


def is_scsi(connection_info: dict[str, Any] | None) -> bool:
    return (connection_info is not None and is_pollux(connection_info)
            and connection_info['data'].get('transport') == connection.SCSI)


def queue_count(vcpus: int) -> int:
    """More queues than virtual CPUs are refused by libvirt and of no use."""
    return max(1, min(int(vcpus), CONF.pollux.max_queues))


class ScsiVolume(vconfig.LibvirtConfigGuestDevice):
    """Stands in Nova's list of devices for a volume on the guest's controller, of which libvirt is told nothing.

    The wrap of `_get_guest_config` takes it out again.
    """

    def __init__(self, target_dev: str, target: int) -> None:
        super().__init__(root_name='pollux-scsi-volume')
        self.target_dev = target_dev
        self.target = target


class BlkVolume(vconfig.LibvirtConfigGuestDisk):
    """<disk type='vhostuser'>."""

    def __init__(self, socket: str, queues: int) -> None:
        super().__init__()
        self.source_type = 'vhostuser'
        self.socket = socket
        self.queues = queues
        self.target_bus = 'virtio'

    def format_dom(self) -> Any:
        return xml.vhostuser_disk(socket=self.socket, queues=self.queues, target_dev=self.target_dev, alias=self.alias)


class LibvirtPolluxVolumeDriver(libvirt_volume.LibvirtBaseVolumeDriver):
    def __init__(self, host: Any) -> None:
        super().__init__(host, is_block_dev=False)
        self.connector = brick_connector.InitiatorConnector.factory(connection.PROTOCOL, utils.get_root_helper())

    def connect_volume(self, connection_info: dict[str, Any], instance: Any) -> None:
        data = connection_info['data']
        device = self.connector.connect_volume(
            {**data, 'client_id': instance.uuid, 'queues': queue_count(instance.flavor.vcpus),
             'in_use': guests.running_xml(self.host, instance) is not None})
        # What get_config needs. It is told anew at every start of the guest.
        data['pollux_device'] = {name: device[name] for name in ('path', 'queues', 'target')}
        LOG.info('Volume %s is on %s', data.get('volume_id'), device['path'], instance=instance)

    def disconnect_volume(self, connection_info: dict[str, Any], instance: Any, force: bool = False) -> None:
        self.connector.disconnect_volume({**connection_info['data'], 'client_id': instance.uuid}, None, force=force)

    def extend_volume(self, connection_info: dict[str, Any], instance: Any, requested_size: int) -> int:
        try:
            size: int = self.connector.extend_volume(connection_info['data'])
        except brick_exception.BrickException as error:
            raise exception.VolumeExtendFailed(volume_id=connection_info['data'].get('volume_id'),
                                               reason=str(error)) from error
        if size < requested_size:
            raise exception.VolumeExtendFailed(
                volume_id=connection_info['data'].get('volume_id'),
                reason=f'the service says that it has {size} bytes, and {requested_size} were asked for')
        return size

    def get_config(self, connection_info: dict[str, Any], disk_info: dict[str, Any]) -> Any:
        device = connection_info['data']['pollux_device']
        if is_scsi(connection_info):
            return ScsiVolume(disk_info['dev'], device['target'])
        disk = BlkVolume(device['path'], device['queues'])
        disk.target_dev = disk_info['dev']
        disk.alias = vconfig.make_libvirt_device_alias(driver_block_device.get_volume_id(connection_info))
        return disk
