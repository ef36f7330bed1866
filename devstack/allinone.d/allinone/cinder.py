"""Cinder with Pollux as its only back end, and backups in files."""

from __future__ import annotations

import pathlib
from typing import Any

from . import files, wait, wsgi
from .common import Context, pool_limits
from .errors import AllInOneError
from .identity import Api, login
from .settings import LOOPBACK

API, SCHEDULER, VOLUME, BACKUP = 'cinder-api', 'cinder-scheduler', 'cinder-volume', 'cinder-backup'
BACKEND = 'pollux-1'
BACKEND_NAME = 'pollux'
DRIVER = 'pollux.cinder.driver.PolluxDriver'
STAMP = '1'
#: The API answers with an error after a minute (rpc_response_timeout) when the scheduler does not listen yet.
START_S = 180
#: Cinder's own choice is a minute.
STATS_S = 5
#: Volume types: name to the transport by which a guest reaches the volume.
TYPES = {'pollux': 'scsi', 'pollux-blk': 'blk'}


def config_path(context: Context) -> pathlib.Path:
    return context.settings.etc / 'cinder' / 'cinder.conf'


def prepare(context: Context, backend: dict[str, Any]) -> None:
    """`backend`: the options by which the driver reaches polluxd."""
    settings = context.settings
    state = settings.folder('data', 'cinder')
    sections: dict[str, dict[str, Any]] = {
        'DEFAULT': {
            'use_stderr': True,
            'host': settings.host,
            'my_ip': LOOPBACK,
            'state_path': state,
            'transport_url': context.transport,
            'auth_strategy': 'keystone',
            'api_paste_config': settings.venv / 'etc' / 'cinder' / 'api-paste.ini',
            'resource_query_filters_file': settings.venv / 'etc' / 'cinder' / 'resource_filters.json',
            'rootwrap_config': settings.venv / 'etc' / 'cinder' / 'rootwrap.conf',
            'enabled_backends': BACKEND,
            'default_volume_type': next(iter(TYPES)),
            'glance_api_servers': settings.url(settings.ports.glance),
            'image_conversion_dir': settings.folder('data', 'cinder', 'conversion'),
            'allow_compression_on_image_upload': True,
            'backup_driver': 'cinder.backup.drivers.posix.PosixBackupDriver',
            'backup_posix_path': settings.folder('data', 'cinder', 'backup'),
            # A piece is held in memory as a whole.
            'backup_file_size': 64 << 20,
            # What the scheduler knows of pools is as old as this; the first counts how often the second is looked at.
            'periodic_interval': STATS_S,
            'backend_stats_polling_interval': STATS_S,
        },
        BACKEND: {'volume_backend_name': BACKEND_NAME, 'volume_driver': DRIVER} | backend,
        'backend_defaults': {},
        'coordination': {'backend_url': f'file://{settings.folder("data", "cinder", "coordination")}'},
        'database': pool_limits(context.database('cinder')),
        'keystone_authtoken': context.authtoken('cinder'),
        'nova': context.credentials('cinder') | {'interface': 'public'},
        'oslo_concurrency': {'lock_path': settings.folder('data', 'cinder', 'locks')},
        'oslo_messaging_rabbit': context.rabbit_options,
        'service_user': context.service_user('cinder'),
    }
    sections |= context.privsep(config_path(context), 'cinder_sys_admin', 'privsep_osbrick')
    files.write_ini(config_path(context), sections)
    if context.once('cinder', STAMP):
        context.processes.run('cinder-setup', ['cinder-manage', f'--config-file={config_path(context)}', 'db', 'sync'])
        context.done('cinder', STAMP)


def start(context: Context) -> None:
    settings = context.settings
    argument = f'--config-file={config_path(context)}'
    wsgi.start(settings, context.processes, API, 'cinder.wsgi.api', settings.ports.cinder, arguments=argument)
    context.processes.start(SCHEDULER, ['cinder-scheduler', argument])
    wsgi.ready(settings, context.processes, API, settings.ports.cinder)
    # What cinder-volume tells the scheduler before that listens is lost, and told again a minute later.
    api = volume_api(context)
    wait.until('cinder-scheduler answers', lambda: _pools(context, api) is not None, START_S,
               hint=f'see {context.processes.log(SCHEDULER)}')
    context.processes.start(VOLUME, ['cinder-volume', argument])
    context.processes.start(BACKUP, ['cinder-backup', argument])


def _pools(context: Context, api: Api) -> list[str] | None:
    """Names of the pools that the scheduler knows; None when it does not answer."""
    context.processes.must_run(SCHEDULER)
    try:
        return [pool['name'] for pool in api.get('/scheduler-stats/get_pools')['pools']]
    except (AllInOneError, OSError):
        return None


def volume_api(context: Context) -> Api:
    token, project = login(context.keystone_url, 'admin', context.secrets['admin'], 'admin')
    return Api(context.settings.url(context.settings.ports.cinder, f'/v3/{project}'), token)


def services_up(context: Context, api: Api) -> bool:
    for name in (SCHEDULER, VOLUME, BACKUP):
        context.processes.must_run(name)
    up = {one['binary'] for one in api.get('/os-services')['services'] if one['state'] == 'up'}
    return {SCHEDULER, VOLUME, BACKUP} <= up and bool(_pools(context, api))


def ensure_types(api: Api) -> None:
    """The volume types, one for each transport."""
    known = {one['name'] for one in api.get('/types')['volume_types']}
    for name, transport in TYPES.items():
        if name not in known:
            api.post('/types', {'volume_type': {'name': name, 'extra_specs': {
                'volume_backend_name': BACKEND_NAME, 'pollux:transport': transport}}})
