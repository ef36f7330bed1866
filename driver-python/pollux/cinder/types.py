"""What a volume type asks of us: extra specs and QoS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cinder import context as cinder_context
from cinder.volume import qos_specs

from pollux import connection, errors
from pollux.rpc import ttypes as rpc

TRANSPORT, PROVISIONING = 'pollux:transport', 'pollux:provisioning'
_PROVISIONING = {'thin': rpc.Provisioning.THIN, 'thick': rpc.Provisioning.THICK}
#: Keys of a QoS specification whose consumer is the back end, as Nova calls them too.
_LIMITS = {
    'read_iops_sec': 'read_iops',
    'write_iops_sec': 'write_iops',
    'total_iops_sec': 'total_iops',
    'read_bytes_sec': 'read_bytes_per_s',
    'write_bytes_sec': 'write_bytes_per_s',
    'total_bytes_sec': 'total_bytes_per_s',
}


def extra_specs(volume: Any) -> Mapping[str, str]:
    kind = volume.volume_type if volume.volume_type_id else None
    return (kind.extra_specs if kind else None) or {}


def transport(specs: Mapping[str, str]) -> str:
    value = str(specs.get(TRANSPORT, connection.SCSI)).lower()
    if value not in connection.TRANSPORTS:
        raise errors.Invalid(f"extra spec {TRANSPORT} is '{value}', and must be one of "
                             f"{', '.join(connection.TRANSPORTS)}")
    return value


def provisioning(specs: Mapping[str, str]) -> int:
    value = str(specs.get(PROVISIONING, 'thin')).lower()
    if value not in _PROVISIONING:
        raise errors.Invalid(f"extra spec {PROVISIONING} is '{value}', and must be one of {', '.join(_PROVISIONING)}")
    return _PROVISIONING[value]


def refuse_encryption(volume: Any) -> None:
    """Raises Unsupported for a volume of an encrypted type: Cinder has given it a key."""
    if volume.encryption_key_id:
        raise errors.Unsupported('the type of the volume is encrypted, and the service cannot encrypt: use a type '
                                 'without encryption')


def limits(kind: Any) -> rpc.QosLimits | None:
    """What the back end is to enforce for volumes of this type; None for nothing. Raises Invalid."""
    if not kind or not kind.qos_specs_id:
        return None
    asked = qos_specs.get_qos_specs(cinder_context.get_admin_context(), kind.qos_specs_id)
    if asked['consumer'] not in ('back-end', 'both'):
        return None
    values: dict[str, int] = {}
    for key, value in asked['specs'].items():
        if key not in _LIMITS:
            raise errors.Invalid(f"QoS specification '{key}' is not known; known are {', '.join(_LIMITS)}")
        if not str(value).isdecimal():
            raise errors.Invalid(f"QoS specification {key} is '{value}', and must be a whole number")
        values[_LIMITS[key]] = int(value)
    return rpc.QosLimits(**values)
