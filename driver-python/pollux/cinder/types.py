"""What a volume type asks of us: extra specs and QoS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cinder import context as cinder_context
from cinder.volume import qos_specs
from oslo_log import log as logging

from pollux import connection, errors
from pollux.rpc import ttypes as rpc

LOG = logging.getLogger(__name__)
TRANSPORT, PROVISIONING, SCSI_NAMES = 'pollux:transport', 'pollux:provisioning', 'pollux:scsi_names'
_PROVISIONING = {'thin': rpc.Provisioning.THIN, 'thick': rpc.Provisioning.THICK}
#: Keys of a QoS specification, as Nova calls them too; its consumer does not matter, see `limits`.
_LIMITS = {
    'read_iops_sec': 'read_iops',
    'write_iops_sec': 'write_iops',
    'total_iops_sec': 'total_iops',
    'read_bytes_sec': 'read_bytes_per_s',
    'write_bytes_sec': 'write_bytes_per_s',
    'total_bytes_sec': 'total_bytes_per_s',
}
#: Of each limit: its burst, and how long that lasts.
_BURSTS = {
    'read_iops': ('read_burst_iops', 'read_iops_burst_s'),
    'write_iops': ('write_burst_iops', 'write_iops_burst_s'),
    'total_iops': ('total_burst_iops', 'total_iops_burst_s'),
    'read_bytes_per_s': ('read_burst_bytes_per_s', 'read_bytes_burst_s'),
    'write_bytes_per_s': ('write_burst_bytes_per_s', 'write_bytes_burst_s'),
    'total_bytes_per_s': ('total_burst_bytes_per_s', 'total_bytes_burst_s'),
}
_LONGEST_BURST_S = 3600


def extra_specs(volume: Any) -> Mapping[str, str]:
    found = kind(volume)
    return (found.extra_specs if found else None) or {}


def transport(specs: Mapping[str, str]) -> str:
    value = str(specs.get(TRANSPORT, connection.SCSI)).lower()
    if value not in connection.TRANSPORTS:
        raise errors.Invalid(f"extra spec {TRANSPORT} is '{value}', and must be one of "
                             f"{', '.join(connection.TRANSPORTS)}")
    return value


def scsi_names(specs: Mapping[str, str]) -> str:
    value = str(specs.get(SCSI_NAMES, connection.OWN_NAMES)).lower()
    if value not in connection.SCSI_NAMES:
        raise errors.Invalid(f"extra spec {SCSI_NAMES} is '{value}', and must be one of "
                             f"{', '.join(connection.SCSI_NAMES)}")
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


def kind(volume: Any) -> Any:
    """The volume's type, or None."""
    return volume.volume_type if volume.volume_type_id else None


def limits(volume_type: Any, size_gib: int) -> rpc.QosLimits:
    """What the service is to enforce for a volume of this type and size.

    The consumer of the specification does not matter: a hypervisor cannot limit a disk whose requests it never sees.
    Each limit is fixed, or KEY_per_gb with KEY_per_gb_min and KEY_max, which count as in Cinder's front-end handling.
    With a fixed limit KEY_max is a burst, as in libvirt and Nova, and KEY_max_length says how many seconds it lasts.
    What is not known or no number is left out, and a warning says so.
    """
    if not volume_type or not volume_type.qos_specs_id:
        return rpc.QosLimits()
    name = volume_type.qos_specs_id
    specs = dict(qos_specs.get_qos_specs(cinder_context.get_admin_context(), name)['specs'])

    def take(key: str) -> int | None:
        value = specs.pop(key, None)
        if value is None:
            return None
        if not str(value).isdecimal():
            LOG.warning("QoS specification %s: %s is '%s', which is no whole number: it is ignored", name, key, value)
            return None
        return int(value)

    values: dict[str, int] = {}
    for key, limit in _LIMITS.items():
        fixed, per_gib = take(key), take(f'{key}_per_gb')
        if per_gib is not None:
            fixed = max(per_gib * size_gib, take(f'{key}_per_gb_min') or 0)
            most = take(f'{key}_max')
            fixed = fixed if most is None else min(fixed, most)
        if fixed:
            values[limit] = fixed
            if per_gib is None and (burst := take(f'{key}_max')):
                values.update(_burst(name, key, limit, fixed, burst, take(f'{key}_max_length')))
    if specs:
        LOG.warning('QoS specification %s: %s cannot be enforced by the service, and is ignored. Enforced are %s, '
                    'their forms with _per_gb, and with _max where the limit itself is set', name,
                    ', '.join(sorted(specs)), ', '.join(_LIMITS))
    return rpc.QosLimits(**values)


def _burst(name: str, key: str, limit: str, fixed: int, burst: int, length_s: int | None) -> dict[str, int]:
    if burst < fixed:
        LOG.warning('QoS specification %s: %s_max is %s, below the limit: it is ignored', name, key, burst)
        return {}
    if length_s is not None and not 1 <= length_s <= _LONGEST_BURST_S:
        LOG.warning('QoS specification %s: %s_max_length is %s, and must be 1 to %s: 1 is taken', name, key, length_s,
                    _LONGEST_BURST_S)
        length_s = None
    rate, length = _BURSTS[limit]
    return {rate: burst, length: length_s or 1}


def same_limits(one: rpc.QosLimits | None, other: rpc.QosLimits | None) -> bool:
    """0 is no limit, and so is nothing."""
    fields = (*_LIMITS.values(), *(field for pair in _BURSTS.values() for field in pair))
    return all((getattr(one, field, None) or 0) == (getattr(other, field, None) or 0) for field in fields)


def has_bursts(limits: rpc.QosLimits) -> bool:
    return any(getattr(limits, rate) for rate, _ in _BURSTS.values())
