"""Placement: which host has room."""

from __future__ import annotations

from . import files, wsgi
from .common import Context, pool_limits

NAME = 'placement-api'
STAMP = '1'


def prepare(context: Context) -> None:
    settings = context.settings
    config = settings.etc / 'placement' / 'placement.conf'
    files.write_ini(config, {
        'DEFAULT': {'use_stderr': True},
        'api': {'auth_strategy': 'keystone'},
        'placement_database': pool_limits(context.database('placement')),
        'keystone_authtoken': context.authtoken('placement'),
    })
    if context.once(NAME, STAMP):
        context.processes.run('placement-setup', ['placement-manage', f'--config-file={config}', 'db', 'sync'])
        context.done(NAME, STAMP)


def start(context: Context) -> None:
    settings = context.settings
    wsgi.start(settings, context.processes, NAME, 'placement.wsgi.api', settings.ports.placement,
               env={'OS_PLACEMENT_CONFIG_DIR': str(settings.etc / 'placement')})


def ready(context: Context) -> None:
    wsgi.ready(context.settings, context.processes, NAME, context.settings.ports.placement)
