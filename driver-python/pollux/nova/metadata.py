"""What Nova tells a guest about its scsi volumes: their tags, with the address of each on the controller.

Nova reads the devices that it describes from libvirt's XML, which does not have these volumes.
"""

from __future__ import annotations

from typing import Any

from nova import objects
from oslo_log import log as logging

from pollux import errors
from pollux.brick.clients import local_client
from pollux.rpc import ttypes as types

LOG = logging.getLogger(__name__)


def tagged_volumes(context: Any, instance: Any) -> list[Any]:
    """A DiskMetadata for each scsi volume of the guest to which the user gave a tag."""
    mappings = objects.BlockDeviceMappingList.get_by_instance_uuid(context, instance.uuid)
    tags = {mapping.volume_id: mapping.tag for mapping in mappings if mapping.tag and mapping.volume_id}
    if not tags:
        return []
    try:
        attached = local_client().attachment_list(client_id=instance.uuid)
    except errors.PolluxError as error:
        LOG.warning('The tags of scsi volumes are not told to the guest: %s', error, instance=instance)
        return []
    return [objects.DiskMetadata(tags=[tags[one.volume_id]], serial=one.volume_id,
                                 # Guests number their controllers as they find them: it is the first of its kind.
                                 bus=objects.SCSIDeviceBus(address=f'0:0:{one.target}:{one.lun}'))
            for one in attached if one.transport == types.Transport.SCSI and one.volume_id in tags]
