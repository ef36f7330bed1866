"""What Cinder tells Nova about a volume: the data of a connection_info.

Nova keeps it in its database for as long as the volume is attached, and replays it without asking Cinder when a guest
starts again. So it has a version, and no secret.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping
from typing import Any

from pollux import errors

#: driver_volume_type of a connection_info, and the name of the connector.
PROTOCOL = 'pollux'
VERSION = 1
SCSI, BLK = 'scsi', 'blk'
TRANSPORTS = (SCSI, BLK)
#: By which names a guest knows a scsi disk.
OWN_NAMES, QEMU_NAMES = 'pollux', 'qemu'
SCSI_NAMES = (OWN_NAMES, QEMU_NAMES)

#: Names attachments. Never to be changed: a guest that runs was given its attachment by it.
_NAMESPACE = uuid.UUID('5c0f5f4e-6a7b-5b5a-8a51-3a1d6f0c9b7e')


@dataclasses.dataclass(frozen=True)
class Connection:
    volume_id: str
    transport: str
    #: What the guest sees as the disk's serial number.
    serial: str
    #: host_id of the service that holds the volume.
    home: str
    read_only: bool = False
    #: The guest, an instance's UUID. Nova adds it; Cinder does not know it.
    client_id: str = ''
    #: Request queues of a blk disk; 0 is the service's default.
    queues: int = 0
    #: The guest runs: an attachment that it has is not exchanged for another.
    in_use: bool = False
    scsi_names: str = OWN_NAMES

    @property
    def attachment_id(self) -> str:
        """The same for every repetition, on whatever host it is made."""
        return str(uuid.uuid5(_NAMESPACE, f'{self.volume_id}/{self.client_id}'))

    def as_data(self) -> dict[str, Any]:
        return {
            'pollux_version': VERSION,
            'volume_id': self.volume_id,
            'transport': self.transport,
            'pollux_serial': self.serial,
            'home': self.home,
            # Hosts with an earlier package do not know it, and give the names that they always gave.
            **({'scsi_names': self.scsi_names} if self.scsi_names != OWN_NAMES else {}),
        }


def serial_of(volume_id: str, transport: str) -> str:
    """virtio-blk has room for 20 bytes (VIRTIO 1.2 5.2.6), SCSI for the whole UUID."""
    return volume_id[:20] if transport == BLK else volume_id


def parse(data: Mapping[str, Any], *, client_id: str = '', queues: int = 0) -> Connection:
    """Check what came from Cinder or from Nova's database.

    Raises Unsupported for a version or a feature that this code does not know, and Invalid for what is no connection.
    """
    version = data.get('pollux_version')
    if not isinstance(version, int):
        raise errors.Invalid('This is not the connection of a Pollux volume: it has no pollux_version')
    if version > VERSION:
        raise errors.Unsupported(f'The connection has version {version}, and this host knows versions up to {VERSION}: '
                                 'upgrade the package pollux on it')
    if data.get('encrypted'):
        raise errors.Unsupported(f'Volume {data.get("volume_id")} has an encrypted type, and the service cannot '
                                 'encrypt: attached, it would be written in plain text. Use a type without encryption')
    transport = data.get('transport')
    if transport not in TRANSPORTS:
        raise errors.Invalid(f"transport is '{transport}', and must be one of {', '.join(TRANSPORTS)}")
    try:
        volume_id = str(uuid.UUID(str(data.get('volume_id'))))
    except ValueError as error:
        raise errors.Invalid(f"volume_id '{data.get('volume_id')}' is not a UUID") from error
    scsi_names = data.get('scsi_names', OWN_NAMES)
    if scsi_names not in SCSI_NAMES:
        raise errors.Invalid(f"scsi_names is '{scsi_names}', and must be one of {', '.join(SCSI_NAMES)}")
    return Connection(volume_id=volume_id, transport=transport, serial=str(data.get('pollux_serial', '')),
                      home=str(data.get('home', '')), read_only=data.get('access_mode') == 'ro',
                      client_id=client_id or str(data.get('client_id', '')),
                      queues=queues or int(data.get('queues', 0)), in_use=bool(data.get('in_use')),
                      scsi_names=scsi_names)
