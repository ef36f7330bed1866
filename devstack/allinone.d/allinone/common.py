"""Configuration that several OpenStack services share."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from . import files, mariadb, rabbitmq
from .process import Processes
from .settings import Settings

PASSWORDS = ('database', 'rabbitmq', 'admin', 'glance', 'placement', 'nova', 'cinder')


@dataclasses.dataclass(frozen=True)
class Context:
    """What starting a service takes."""

    settings: Settings
    processes: Processes

    @property
    def secrets(self) -> dict[str, str]:
        return files.passwords(self.settings.etc / 'passwords.json', PASSWORDS)

    def database(self, name: str) -> str:
        return mariadb.url(self.settings, name, self.secrets['database'])

    @property
    def transport(self) -> str:
        return rabbitmq.url(self.settings, self.secrets['rabbitmq'])

    @property
    def keystone_url(self) -> str:
        return self.settings.url(self.settings.ports.keystone, '/v3')

    def credentials(self, user: str) -> dict[str, Any]:
        """Options by which a service's user logs in (keystoneauth)."""
        return {
            'auth_type': 'password',
            'auth_url': self.keystone_url,
            'username': user,
            'password': self.secrets[user],
            'project_name': 'service',
            'user_domain_name': 'Default',
            'project_domain_name': 'Default',
            'region_name': self.settings.region,
        }

    def authtoken(self, user: str) -> dict[str, Any]:
        """[keystone_authtoken]: how an API checks the tokens it gets."""
        return self.credentials(user) | {
            'www_authenticate_uri': self.keystone_url,
            'service_token_roles': 'service',
            'service_token_roles_required': True,
            'interface': 'public',
        }

    def service_user(self, user: str) -> dict[str, Any]:
        """[service_user]: without it Cinder refuses Nova to take a volume from a running guest (409)."""
        return self.credentials(user) | {'send_service_user_token': True}

    def privsep(self, config: pathlib.Path, *contexts: str) -> dict[str, dict[str, Any]]:
        """The sections by which services start their privileged helper: they are root already and need no sudo."""
        command = f'{self.settings.program("privsep-helper")} --config-file {config}'
        return {name: {'helper_command': command} for name in contexts}

    @property
    def rabbit_options(self) -> dict[str, Any]:
        return {'heartbeat_timeout_threshold': 60, 'rabbit_retry_interval': 1, 'rabbit_retry_backoff': 1}

    def once(self, marker: str, stamp: str) -> bool:
        """True when work named `marker` was not done yet for this `stamp`; see `done`."""
        path = self.settings.data / 'done' / marker
        return not path.exists() or path.read_text() != stamp

    def done(self, marker: str, stamp: str) -> None:
        files.write(self.settings.data / 'done' / marker, stamp)


def pool_limits(connection: str) -> dict[str, Any]:
    """[database]: few connections, since a dozen services share one small server."""
    return {'connection': connection, 'max_pool_size': 5, 'max_overflow': 10}
