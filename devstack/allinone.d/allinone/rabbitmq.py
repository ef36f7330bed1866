"""A RabbitMQ node of our own: own name, folders, cookie and port mapper, everything on the loopback address."""

from __future__ import annotations

import shutil

from . import files, wait
from .process import Processes
from .settings import LOOPBACK, Settings

NAME = 'rabbitmq'
EPMD = 'epmd'
USER = 'openstack'
NODE = 'pollux@localhost'


def url(settings: Settings, password: str) -> str:
    return f'rabbit://{USER}:{password}@{LOOPBACK}:{settings.ports.rabbitmq}/'


def start(settings: Settings, processes: Processes, password: str) -> None:
    """Start the node and wait until clients can connect. Queues do not outlive it, nor need they."""
    if processes.running(NAME):
        return
    ports = settings.ports
    home = settings.folder('data', 'rabbitmq', mode=0o700)
    shutil.rmtree(home)
    home = settings.folder('data', 'rabbitmq', mode=0o700)
    config = settings.etc / 'rabbitmq.conf'
    files.write(config, '\n'.join([
        f'listeners.tcp.1 = {LOOPBACK}:{ports.rabbitmq}',
        'log.file = false',
        'log.console = true',
        'log.console.level = warning',
        f'default_user = {USER}',
        f'default_pass = {password}',
        'disk_free_limit.absolute = 50MB',
        'vm_memory_high_watermark.absolute = 512MB',
        '',
    ]))
    files.write(home / 'enabled_plugins', '[].\n')
    for path in (home, home / 'enabled_plugins'):
        shutil.chown(path, 'rabbitmq', 'rabbitmq')
    # The configuration holds a password: for the node's user alone.
    shutil.chown(config, 'root', 'rabbitmq')
    config.chmod(0o640)
    environment = {
        'HOME': str(home),
        'ERL_EPMD_PORT': str(ports.epmd),
        'ERL_EPMD_ADDRESS': LOOPBACK,
        'RABBITMQ_NODENAME': NODE,
        'RABBITMQ_CONF_ENV_FILE': str(home / 'no-such-file'),
        'RABBITMQ_CONFIG_FILE': str(config),
        'RABBITMQ_MNESIA_BASE': str(home / 'mnesia'),
        'RABBITMQ_LOG_BASE': str(home / 'log'),
        'RABBITMQ_ENABLED_PLUGINS_FILE': str(home / 'enabled_plugins'),
        'RABBITMQ_PID_FILE': str(home / 'pid'),
        'RABBITMQ_DIST_PORT': str(ports.rabbitmq_distribution),
        # One scheduler that does not spin; the distribution port, unused but there, on the loopback address.
        'RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS':
            '+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none -start_epmd false '
            '-kernel inet_dist_use_interface {127,0,0,1}',
    }
    processes.start(EPMD, ['epmd', '-address', LOOPBACK, '-port', str(ports.epmd)], user='rabbitmq')

    def mapper_ready() -> bool:
        processes.must_run(EPMD)
        return wait.port_open(LOOPBACK, ports.epmd)
    wait.until('the Erlang port mapper answers', mapper_ready, 10)
    processes.start(NAME, ['/usr/lib/rabbitmq/bin/rabbitmq-server'], env=environment, user='rabbitmq')

    def ready() -> bool:
        processes.must_run(NAME)
        return wait.port_open(LOOPBACK, ports.rabbitmq)
    wait.until('RabbitMQ accepts connections', ready, 90)
