"""Tells os-brick of our connector. os-brick has no plug-in point: its list and its mappings are extended."""

from __future__ import annotations

from typing import Any

from pollux import errors

CONNECTOR = 'pollux.brick.connector.PolluxConnector'
#: os-brick looks protocols up in upper case.
PROTOCOL = 'POLLUX'
_MAPPINGS = ('_connector_mapping_linux', '_connector_mapping_linux_s390x', '_connector_mapping_linux_ppc64')


def register() -> None:
    """May be called again. Raises Unsupported when os-brick is not built as expected; nothing is changed then."""
    from os_brick.initiator import connector

    extend(connector)


def extend(connector: Any) -> None:
    """The same for the module `os_brick.initiator.connector`."""
    names = getattr(connector, 'unix_connector_list', None)
    mappings = [getattr(connector, name, None) for name in _MAPPINGS]
    if not isinstance(names, list) or not all(isinstance(mapping, dict) for mapping in mappings):
        raise errors.Unsupported('os_brick.initiator.connector has no unix_connector_list or connector mappings: '
                                 'this os-brick is none that Pollux knows')
    for mapping in mappings:
        mapping.setdefault(PROTOCOL, CONNECTOR)  # type: ignore[union-attr]
    if CONNECTOR not in names:
        names.append(CONNECTOR)
