"""A MariaDB of our own: reachable over its UNIX socket alone, with a small buffer pool."""

from __future__ import annotations

import pathlib

from . import files, wait
from .process import Processes
from .settings import Settings

NAME = 'mariadb'
USER = 'openstack'
DATABASES = ('keystone', 'glance', 'placement', 'nova_api', 'nova_cell0', 'nova', 'cinder')


def socket_path(settings: Settings) -> pathlib.Path:
    return settings.run / 'mariadb' / 'mariadb.sock'


def url(settings: Settings, database: str, password: str) -> str:
    """For oslo.db."""
    return (f'mysql+pymysql://{USER}:{password}@localhost/{database}'
            f'?unix_socket={socket_path(settings)}&charset=utf8mb3')


def start(settings: Settings, processes: Processes, password: str) -> None:
    """Start the server and make the databases and their user. Data from an earlier run is kept."""
    if processes.running(NAME):
        return
    folder = settings.folder('data', 'mariadb', mode=0o700)
    runtime = settings.folder('run', 'mariadb', mode=0o700)
    config = settings.etc / 'mariadb.cnf'
    files.write_ini(config, {'mariadbd': {
        'datadir': folder,
        'socket': socket_path(settings),
        'pid_file': runtime / 'mariadb.pid',
        'skip_networking': True,
        # The package without unit files makes no user of its own; only root can reach the socket's folder.
        'user': 'root',
        'innodb_buffer_pool_size': '64M',
        'innodb_log_file_size': '32M',
        # A demonstration may lose its last second at a power cut, and needs no more.
        'innodb_flush_log_at_trx_commit': 2,
        'performance_schema': False,
        'max_connections': 300,
        'character_set_server': 'utf8mb3',
    }}, mode=0o644)
    if not (folder / 'mysql').exists():
        processes.run('mariadb-install', ['mariadb-install-db', f'--defaults-file={config}', f'--datadir={folder}',
                                          '--user=root', '--skip-test-db', '--skip-name-resolve',
                                          '--auth-root-authentication-method=socket'])
    processes.start(NAME, ['mariadbd', f'--defaults-file={config}'])

    def ready() -> bool:
        processes.must_run(NAME)
        return wait.unix_open(str(socket_path(settings)))
    wait.until('MariaDB accepts connections', ready, 60)

    statements = [f"CREATE USER IF NOT EXISTS '{USER}'@'localhost' IDENTIFIED BY '{password}';"]
    for database in DATABASES:
        statements += [f'CREATE DATABASE IF NOT EXISTS {database};',
                       f"GRANT ALL ON {database}.* TO '{USER}'@'localhost';"]
    processes.run('mariadb-setup', ['mariadb', '--no-defaults', f'--socket={socket_path(settings)}', '--user=root'],
                  stdin='\n'.join(statements))
