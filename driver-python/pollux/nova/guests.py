"""What the local service keeps for a guest besides its volumes: the scsi controller."""

from __future__ import annotations

from typing import Any

import nova.conf
from nova import exception
from nova.compute import power_state
from oslo_log import log as logging
from oslo_utils import strutils

from pollux import errors
from pollux.brick.clients import local_client
from pollux.nova import xml
from pollux.rpc import ttypes as types

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)
_NOT_RUNNING = (power_state.NOSTATE, power_state.SHUTDOWN, power_state.CRASHED)


def wants_preparation(instance: Any) -> bool:
    """Whether a guest without volumes of ours is to be able to get some while it runs, see `prepared_guests`."""
    said = (instance.flavor.extra_specs.get('pollux:prepared')
            or instance.system_metadata.get('image_pollux_prepared'))
    if said is None:
        return bool(CONF.pollux.prepared_guests == 'all')
    return strutils.bool_from_string(said)


def running_xml(host: Any, instance: Any) -> str | None:
    """The XML of the guest while a QEMU of this host runs it."""
    try:
        guest = host.get_guest(instance)
        if guest.get_power_state(host) in _NOT_RUNNING:
            return None
        text: str = guest.get_xml_desc()
    except exception.InstanceNotFound:
        return None
    return text


def ensure_controller(instance: Any, queues: int, running: str | None) -> tuple[str, int]:
    """The socket of the guest's controller and its number of queues; the controller is made when it is missing.

    `running` is the XML of the guest while it runs. What such a guest uses stays as it is, whatever `queues` says: Nova
    writes the configuration of a rescue before it stops the guest. Raises PolluxError.
    """
    client = local_client()
    try:
        return client.controller_ensure(instance.uuid, queues), queues
    except errors.Exists:
        used = xml.controller_queues(running) if running else None
        if used is not None:
            LOG.info('The scsi controller keeps its %s queues while the guest runs', used, instance=instance)
            return client.controller_ensure(instance.uuid, used), used
    # The guest was resized, or the option changed, since the controller was made.
    LOG.info('The scsi controller is made anew with %s queues', queues, instance=instance)
    for attachment in client.attachment_list(client_id=instance.uuid):
        if attachment.transport == types.Transport.SCSI:
            client.detach(attachment.attachment_id)
    client.controller_delete(instance.uuid)
    return client.controller_ensure(instance.uuid, queues), queues


def release(instance: Any, *, controller_alone: bool = False) -> None:
    """Take away what a guest that has left this host still has on the service; or its controller alone, which it does
    not use. Raises PolluxError."""
    client = local_client()
    if not controller_alone:
        for attachment in client.attachment_list(client_id=instance.uuid):
            client.detach(attachment.attachment_id)
    client.controller_delete(instance.uuid)
