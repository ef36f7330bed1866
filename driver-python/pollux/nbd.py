"""The service's NBD sockets: opening them for as long as a copy lasts, and naming them as qemu-img does."""

from __future__ import annotations

import contextlib
import errno
import logging
import urllib.parse
import uuid
from collections.abc import Iterator

from pollux import errors
from pollux.client import Client
from pollux.nbd_file import NbdFile
from pollux.rpc import ttypes as types

LOG = logging.getLogger(__name__)


def url(info: types.DataSocketInfo) -> str:
    """How qemu-img and libnbd name the export (NBD project, doc/uri.md)."""
    return f'nbd+unix:///{urllib.parse.quote(info.export_name, safe="")}?socket={urllib.parse.quote(info.path)}'


@contextlib.contextmanager
def open_volume(client: Client, volume_id: str, *, read_only: bool, request_id: str | None = None) -> Iterator[str]:
    """The URL of an open volume or snapshot. Leaving the block without an error means: flushed and closed.

    Each block has a socket of its own. When the process dies in it, the service closes the socket by itself.
    """
    socket_id = str(uuid.uuid4())
    info = client.data_open(types.DataSocketSpec(socket_id=socket_id, volume_id=volume_id, read_only=read_only),
                            request_id=request_id)
    try:
        yield url(info)
    except BaseException:
        try:
            client.data_close(socket_id, request_id=request_id)
        except errors.PolluxError as error:
            # What went wrong in the block is what the caller must hear of.
            LOG.warning('NBD socket %s of volume %s was not closed: %s', socket_id, volume_id, error)
        raise
    client.data_close(socket_id, request_id=request_id)


def open_file(client: Client, volume_id: str, *, read_only: bool) -> NbdFile:
    """A volume as a file, with a socket of its own. Closing it flushes.

    Raises PolluxError, and OSError when the socket does not answer.
    """
    socket_id = str(uuid.uuid4())
    info = client.data_open(types.DataSocketSpec(socket_id=socket_id, volume_id=volume_id, read_only=read_only))

    def close() -> None:
        try:
            client.data_close(socket_id)
        except errors.PolluxError as error:
            raise OSError(errno.EIO, f'volume {volume_id} was not closed: {error}') from error
    try:
        return NbdFile(info.path, info.export_name, timeout_s=client.settings.deadline_ms / 1000, on_close=close)
    except OSError:
        close()
        raise
