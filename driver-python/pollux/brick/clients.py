"""Which polluxd this process speaks to.

nova-compute and cinder-volume say so with `configure`. Other processes of Cinder (cinder-backup) have the cinder.conf
that cinder-volume has, and so the options of its back ends count. Everybody else has the environment and client.toml,
see pollux.client.settings.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import Any

from pollux import errors
from pollux.client import Client
from pollux.client import settings as client_settings

DRIVER = 'pollux.cinder.driver.PolluxDriver'

_given: dict[str, Any] = {}


def configure(given: Mapping[str, Any]) -> None:
    """Options of this process (see pollux.client.settings). Empty: it has none of its own."""
    _given.clear()
    _given.update(given)


@functools.lru_cache(maxsize=8)
def _client_for(settings: client_settings.Settings) -> Client:
    return Client(settings)


def local_settings() -> client_settings.Settings:
    """Those of the process, else of the first back end. Raises Misconfigured."""
    return client_settings.load(_given or next(iter(_back_ends()), {}))


def local_client() -> Client:
    """The client of the local service. Raises Misconfigured."""
    return _client_for(local_settings())


def client_of(home: str) -> Client:
    """The client of the service with this host_id, where cinder.conf has several back ends. Raises PolluxError."""
    known = dict.fromkeys(client_settings.load(given) for given in [*([_given] if _given else []), *_back_ends()])
    if len(known) < 2 or not home:
        return local_client()
    failures: list[str] = []
    for settings in known:
        try:
            client = _client_for(settings)
            if client.describe().host_id == home:
                return client
        except errors.PolluxError as error:
            failures.append(str(error))
    raise errors.NotFound(f'No back end of cinder.conf is the service {home}' + ''.join(f'; {one}' for one in failures))


def _back_ends() -> list[dict[str, Any]]:
    """The options of each Pollux back end in the cinder.conf of this process."""
    from oslo_config import cfg

    # The project is not known before the process has read its configuration.
    if 'cinder.service' not in sys.modules or getattr(cfg.CONF, 'project', None) != 'cinder':
        return []
    from cinder.volume import configuration, manager

    from pollux import options

    found = []
    for name in getattr(cfg.CONF, 'enabled_backends', None) or []:
        section = configuration.Configuration(manager.volume_backend_opts, config_group=name)
        if section.volume_driver == DRIVER:
            section.append_config_values(options.client_opts)
            found.append(options.given(section))
    return found
