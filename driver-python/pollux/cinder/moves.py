"""Volumes that change their place and keep their id, by which guests know their disks.

The service has each id once and renames nothing. So a volume is copied to another pool under an id of its own, and once
the copy is whole, which a snapshot of it says, the volume is deleted and made anew as a clone of that. A process
that dies before the deletion has changed nothing; one that dies after it is finished by `finish`.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable

from cinder.db import api as _  # noqa: F401  registers volume_name_template
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_log import log as logging

from pollux import errors, nbd
from pollux.cinder import images
from pollux.client import Client
from pollux.rpc import ttypes as rpc

CONF = cfg.CONF
LOG = logging.getLogger(__name__)

_NAMESPACE = uuid.UUID('5e2b7b1c-63f9-5f6e-8a2f-7a0c4d6e9b35')
_COPY, _WHOLE = 'move-', 'moved-'


def _ids(volume_id: str) -> tuple[str, str]:
    """Of the copy, and of the snapshot that says that it is whole."""
    return tuple(str(uuid.uuid5(_NAMESPACE, f'{kind}{volume_id}')) for kind in (_COPY, _WHOLE))  # type: ignore[return-value]


def _find(client: Client, volume_id: str) -> rpc.VolumeInfo | None:
    try:
        return client.volume_describe(volume_id)
    except errors.NotFound:
        return None


def forget(client: Client, volume_id: str) -> None:
    """Delete what a move of the volume has left."""
    for one in reversed(_ids(volume_id)):
        client.volume_delete(one)


def copy(client: Client, source_id: str, target_id: str) -> None:
    """All bytes of a volume or snapshot to a new volume. Raises PolluxError."""
    with (nbd.open_volume(client, source_id, read_only=True) as origin,
          nbd.open_volume(client, target_id, read_only=False) as target):
        try:
            images.convert(origin, 'raw', target, 'raw', into_volume=True, zeroed=True)
        except processutils.ProcessExecutionError as error:
            raise errors.Internal(f'the copy of {source_id} failed: {error.stderr}') from error


def move(client: Client, pool: str, spec: rpc.VolumeSpec, *, copied: Callable[[], None] = lambda: None) -> None:
    """Take a volume that nobody uses to another pool. `copied` is called before the volume is deleted.

    May be repeated. Raises PolluxError: Busy when the volume is in use.
    """
    source = _find(client, spec.volume_id)
    temporary, whole = _ids(spec.volume_id)
    if source is not None:
        # The volume may have been written since an earlier attempt.
        forget(client, spec.volume_id)
        client.volume_create(pool, rpc.VolumeSpec(volume_id=temporary, name=f'{_COPY}{spec.volume_id}',
                                                  size_bytes=spec.size_bytes, provisioning=spec.provisioning))
        with contextlib.ExitStack() as undo:
            undo.callback(client.volume_delete, temporary)
            copy(client, spec.volume_id, temporary)
            undo.pop_all()
        client.snapshot_create(temporary, whole, f'{_WHOLE}{spec.volume_id}')
        copied()
        client.volume_delete(spec.volume_id)
    client.volume_clone(whole, spec)
    forget(client, spec.volume_id)


def finish(client: Client) -> None:
    """Make the volumes that a process left between deletion and clone. Raises PolluxError."""
    for pool in client.pool_list():
        for info in list(client.volumes(pool.name)):
            if not info.snapshot or not info.name.startswith(_WHOLE):
                continue
            volume_id = info.name.removeprefix(_WHOLE)
            if _ids(volume_id)[1] != info.volume_id or _find(client, volume_id) is not None:
                continue
            LOG.warning('Volume %s was being moved to pool %s: this is finished now', volume_id, pool.name)
            move(client, pool.name, rpc.VolumeSpec(volume_id=volume_id, name=CONF.volume_name_template % volume_id,
                                                   size_bytes=info.size_bytes, provisioning=info.provisioning))


def rename(client: Client, volume_id: str, spec: rpc.VolumeSpec) -> bool:
    """Give a volume that nobody uses the id and the name of `spec`. False, and nothing is changed, when the id is taken
    or the volume is in use. Raises PolluxError."""
    if _find(client, spec.volume_id) is not None or client.volume_describe(volume_id).attachments:
        return False
    whole = _ids(spec.volume_id)[1]
    client.snapshot_create(volume_id, whole, f'{_WHOLE}{spec.volume_id}')
    try:
        client.volume_clone(whole, spec)
        client.volume_delete(volume_id)
    finally:
        client.volume_delete(whole)
    return True
