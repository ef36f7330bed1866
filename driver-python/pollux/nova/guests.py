"""What the local service keeps for a guest besides its volumes: the scsi controller."""

from __future__ import annotations

from typing import Any

from oslo_log import log as logging

from pollux import errors
from pollux.brick.connector import local_client

LOG = logging.getLogger(__name__)


def ensure_controller(instance: Any, queues: int) -> str:
    """The socket of the guest's controller, made when it is missing. Only for a guest that does not run.

    Raises PolluxError.
    """
    client = local_client()
    try:
        return client.controller_ensure(instance.uuid, queues)
    except errors.Exists:
        # The guest was resized: its controller has another number of queues.
        LOG.info('The scsi controller is made anew with %s queues', queues, instance=instance)
        release(instance)
        return client.controller_ensure(instance.uuid, queues)


def release(instance: Any) -> None:
    """Take away what a guest that has left this host still has on the service. Raises PolluxError."""
    client = local_client()
    for attachment in client.attachment_list(client_id=instance.uuid):
        client.detach(attachment.attachment_id)
    client.controller_delete(instance.uuid)
