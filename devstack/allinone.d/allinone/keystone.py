"""Keystone: identities, tokens and the catalogue."""

from __future__ import annotations

from . import files, wsgi
from .common import Context, pool_limits
from .identity import Identity

NAME = 'keystone'
STAMP = '1'


def configure(context: Context) -> None:
    settings = context.settings
    keys = settings.folder('data', 'keystone', mode=0o700)
    files.write_ini(settings.etc / 'keystone' / 'keystone.conf', {
        'DEFAULT': {'use_stderr': True},
        'database': pool_limits(context.database('keystone')),
        'token': {'provider': 'fernet'},
        'fernet_tokens': {'key_repository': keys / 'fernet-keys'},
        'credential': {'key_repository': keys / 'credential-keys'},
        # Passwords here are random and long; strong hashing would only cost each token tens of milliseconds.
        'identity': {'password_hash_rounds': 4},
        'cache': {'enabled': True, 'backend': 'oslo_cache.dict'},
    })


def prepare(context: Context) -> None:
    """Tables, keys, the admin user and Keystone's own catalogue entry."""
    settings = context.settings
    configure(context)
    if not context.once(NAME, STAMP):
        return
    manage = ['keystone-manage', f'--config-file={settings.etc}/keystone/keystone.conf']
    run = context.processes.run
    run('keystone-setup', [*manage, 'fernet_setup', '--keystone-user', 'root', '--keystone-group', 'root'])
    run('keystone-setup', [*manage, 'db_sync'])
    url = context.keystone_url
    run('keystone-setup', [*manage, 'bootstrap', '--bootstrap-region-id', settings.region,
                           '--bootstrap-admin-url', url, '--bootstrap-internal-url', url,
                           '--bootstrap-public-url', url],
        env={'OS_BOOTSTRAP_PASSWORD': context.secrets['admin']})
    context.done(NAME, STAMP)


def start(context: Context) -> None:
    settings = context.settings
    port = settings.ports.keystone
    wsgi.start(settings, context.processes, NAME, 'keystone.wsgi.api', port,
               env={'OS_KEYSTONE_CONFIG_FILES': str(settings.etc / 'keystone' / 'keystone.conf')})
    wsgi.ready(settings, context.processes, NAME, port)


def populate(context: Context) -> None:
    """Service users and the catalogue of all services."""
    settings = context.settings
    ports = settings.ports
    stamp = f'{STAMP} {ports}'
    if not context.once('catalogue', stamp):
        return
    identity = Identity(context.keystone_url, context.secrets['admin'])
    for user in ('glance', 'placement', 'nova', 'cinder'):
        identity.service_user(user, context.secrets[user])
    for name, kind, port, path in (
            ('glance', 'image', ports.glance, ''),
            ('placement', 'placement', ports.placement, ''),
            ('nova', 'compute', ports.nova, '/v2.1'),
            ('cinderv3', 'volumev3', ports.cinder, '/v3/$(project_id)s'),
            ('cinder', 'block-storage', ports.cinder, '/v3/$(project_id)s'),
            ('network', 'network', ports.network, '')):
        identity.endpoint(name, kind, settings.region, settings.url(port, path))
    context.done('catalogue', stamp)
