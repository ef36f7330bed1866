"""The os-brick connector: has the host's own polluxd place the socket through which a guest reaches a volume.

A connection that names no guest is one of a service that copies (cinder-volume): it gets the volume as a file.

`connect_volume` needs nothing but the saved connection and the local service, since Nova replays it after a reboot of
guest or host without asking Cinder. It may be repeated, and so may `disconnect_volume`.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID
from os_brick import exception
from os_brick.initiator.connectors import base
from oslo_log import log as logging

from pollux import connection, errors, nbd
from pollux.brick import clients
from pollux.client import Client
from pollux.nbd_file import NbdFile
from pollux.rpc import ttypes as types

LOG = logging.getLogger(__name__)

#: Key of the connector's properties: the name under which the service knows this host.
HOST_PROPERTY = 'pollux_host'
_TRANSPORTS = {connection.SCSI: types.Transport.SCSI, connection.BLK: types.Transport.BLK}
# Names that are the default are not asked for: services from before there were others take the request too.
_SCSI_NAMES = {connection.OWN_NAMES: None, connection.QEMU_NAMES: types.ScsiNames.QEMU}


class PolluxConnector(base.BaseLinuxConnector):
    """Attaches volumes of the Pollux service for guests of this host."""

    def __init__(self, root_helper: str, driver: Any = None, execute: Any = None, client: Client | None = None,
                 *args: Any, **kwargs: Any) -> None:
        super().__init__(root_helper, *args, driver=driver, execute=execute, **kwargs)
        self._client = client

    @property
    def client(self) -> Client:
        return self._client or clients.local_client()

    @staticmethod
    def get_connector_properties(root_helper: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The name in our certificate. os-brick asks every connector at every attach of any kind of volume: so this
        reads local files only, and never raises."""
        try:
            certificate = x509.load_pem_x509_certificate(clients.local_settings().certificate.read_bytes())
            names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            return {HOST_PROPERTY: str(names[0].value)} if names else {}
        except Exception as error:  # noqa: BLE001
            LOG.debug('This host has no name towards Pollux: %s', error)
            return {}

    def check_valid_device(self, path: str | NbdFile, run_as_root: bool = True) -> bool:
        try:
            if isinstance(path, NbdFile):
                path.seek(0)
                valid = len(path.read(4096)) > 0
                path.seek(0)
                return valid
            return stat.S_ISSOCK(os.stat(path).st_mode)
        except OSError:
            return False

    def connect_volume(self, connection_properties: Mapping[str, Any]) -> dict[str, Any]:
        """Have the socket placed.

        :param connection_properties: the data of a connection_info, and client_id: the guest
        :returns: type, path (the vhost-user socket), attachment_id, transport, queues, read_only; for scsi also the
            controller's target and lun. Without client_id: type and path (a file)
        :raises BrickException: with what failed and what to do
        """
        try:
            wanted = connection.parse(connection_properties)
            if wanted.client_id:
                return self._attach(wanted)
            if 'glance_store' in sys.modules and 'cinder' not in sys.modules:
                raise errors.Unsupported("Glance's Cinder store opens volumes by the path of a device, and the service "
                                         'gives it none: use another store of Glance')
            client = self._client or clients.client_of(wanted.home)
            file = nbd.open_file(client, wanted.volume_id, read_only=wanted.read_only)
            return {'type': connection.PROTOCOL, 'path': file}
        except (errors.PolluxError, OSError) as error:
            raise exception.BrickException(
                f'Volume {connection_properties.get("volume_id")} cannot be connected: {error}') from error

    def disconnect_volume(self, connection_properties: Mapping[str, Any], device_info: Mapping[str, Any] | None = None,
                          force: bool = False, ignore_errors: bool = False) -> None:
        try:
            path = (device_info or {}).get('path')
            if isinstance(path, NbdFile):
                path.close()
                return
            # An encrypted volume was never connected; that must not keep anyone from clearing up.
            gone = connection.parse({**connection_properties, 'encrypted': False})
            if gone.client_id:
                self.client.detach(gone.attachment_id)
            # A file is closed by its owner, above.
        except (errors.PolluxError, OSError) as error:
            message = f'Volume {connection_properties.get("volume_id")} cannot be disconnected: {error}'
            if not ignore_errors:
                raise exception.BrickException(message) from error
            LOG.warning(message)

    def extend_volume(self, connection_properties: Mapping[str, Any]) -> int:
        """The size in bytes. The service has told the guest already."""
        try:
            volume = self.client.volume_describe(connection.parse(connection_properties).volume_id)
        except errors.PolluxError as error:
            raise exception.BrickException(
                f'The size of volume {connection_properties.get("volume_id")} is not known: {error}') from error
        return int(volume.size_bytes)

    def get_volume_paths(self, connection_properties: Mapping[str, Any]) -> list[str]:
        try:
            wanted = connection.parse(connection_properties)
            attached = self.client.attachment_list(wanted.volume_id, wanted.client_id)
        except errors.PolluxError as error:
            raise exception.BrickException(f'Attachments are not known: {error}') from error
        return [one.socket_path for one in attached]

    def get_search_path(self) -> None:
        return None

    def get_all_available_volumes(self, connection_properties: Mapping[str, Any] | None = None) -> list[str]:
        return []

    # ------------------------------------------------------------------ inside

    def _attach(self, wanted: connection.Connection) -> dict[str, Any]:
        client = self.client
        spec = types.AttachSpec(attachment_id=wanted.attachment_id, volume_id=wanted.volume_id,
                                client_id=wanted.client_id, transport=_TRANSPORTS[wanted.transport],
                                # A guest's controller has its number of queues for all volumes.
                                queues=0 if wanted.transport == connection.SCSI else wanted.queues,
                                read_only=wanted.read_only, scsi_names=_SCSI_NAMES[wanted.scsi_names])
        try:
            attached = client.attach(spec)
        except errors.Exists:
            # From before the guest was resized, or the number of queues or the type's transport or names changed.
            earlier = client.attachment_list(wanted.volume_id, wanted.client_id)
            if wanted.in_use or any(one.connected for one in earlier):
                # Nova writes the configuration of a rescue while the guest runs: that keeps what it has.
                attached = next((one for one in earlier if one.transport == spec.transport), None)
                if attached is None:
                    raise
            else:
                for one in earlier:
                    client.detach(one.attachment_id)
                attached = client.attach(spec)
        except errors.NotFound as error:
            service = client.describe()
            if wanted.home and wanted.home != service.host_id:
                raise errors.NotFound(f"{error}. The volume's home is host {wanted.home}, and this is host "
                                      f'{service.host_id}: start the guest there') from error
            raise
        return {'type': connection.PROTOCOL, 'path': attached.socket_path, 'attachment_id': attached.attachment_id,
                'transport': wanted.transport, 'queues': attached.queues, 'read_only': attached.read_only,
                'target': attached.target, 'lun': attached.lun}
