"""Glance with images in files."""

from __future__ import annotations

from . import files, wsgi
from .common import Context, pool_limits

NAME = 'glance-api'
STAMP = '1'


def prepare(context: Context) -> None:
    settings = context.settings
    data = settings.folder('data', 'glance', mode=0o700)
    folder = settings.etc / 'glance'
    files.write_ini(folder / 'glance-api.conf', {
        'DEFAULT': {'use_stderr': True, 'enabled_backends': 'file:file', 'enabled_import_methods': '[]',
                    'transport_url': context.transport},
        'database': pool_limits(context.database('glance')),
        'glance_store': {'default_backend': 'file'},
        'file': {'filesystem_store_datadir': data / 'images'},
        'os_glance_staging_store': {'filesystem_store_datadir': data / 'staging'},
        'os_glance_tasks_store': {'filesystem_store_datadir': data / 'tasks'},
        'keystone_authtoken': context.authtoken('glance'),
        'paste_deploy': {'flavor': 'keystone',
                         'config_file': settings.venv / 'etc' / 'glance' / 'glance-api-paste.ini'},
    })
    for place in ('images', 'staging', 'tasks'):
        settings.folder('data', 'glance', place)
    if context.once(NAME, STAMP):
        context.processes.run('glance-setup', ['glance-manage', f'--config-file={folder}/glance-api.conf', 'db_sync'])
        context.done(NAME, STAMP)


def start(context: Context) -> None:
    settings = context.settings
    wsgi.start(settings, context.processes, NAME, 'glance.wsgi.api', settings.ports.glance,
               env={'OS_GLANCE_CONFIG_DIR': str(settings.etc / 'glance')})


def ready(context: Context) -> None:
    wsgi.ready(context.settings, context.processes, NAME, context.settings.ports.glance)
