"""polluxd on a file-backed pool, with certificates of its own."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from . import build, files, wait
from .common import Context
from .errors import AllInOneError
from .settings import LOOPBACK, Settings

NAME = 'polluxd'
#: nova-compute with the Pollux volume driver loaded first.
COMPUTE_PROGRAM = 'pollux-nova-compute'
#: Deleted volumes give their space back in the background.
RECLAIM_S = 60.0
#: Pools are opened, and their journals replayed, before the service is ready.
READY_S = 120.0


def certificates(settings: Settings) -> pathlib.Path:
    return settings.state / 'certs'


def pid_file(settings: Settings) -> pathlib.Path:
    """There while the service is ready."""
    return settings.run / 'polluxd' / 'polluxd.pid'


def config_text(settings: Settings) -> str:
    """polluxd.toml: what differs from the defaults, which etc/polluxd.toml explains."""
    certs = certificates(settings)
    return f'''\
[service]
host_id = "{settings.host}"
state_dir = "{settings.folder('data', 'polluxd')}"
runtime_dir = "{settings.folder('run', 'polluxd')}"
pid_file = "{pid_file(settings)}"

[memory]
hugepages = "off"

[control]
listen = "{LOOPBACK}:{settings.ports.polluxd}"
ca = "{certs}/ca.pem"
certificate = "{certs}/server.pem"
key = "{certs}/server-key.pem"

[metrics]
listen = "{LOOPBACK}:{settings.ports.polluxd_metrics}"
'''


def client_options(settings: Settings, role: str) -> dict[str, Any]:
    certs = certificates(settings)
    return {
        'pollux_address': f'{LOOPBACK}:{settings.ports.polluxd}',
        'pollux_ca': certs / 'ca.pem',
        'pollux_certificate': certs / f'{role}.pem',
        'pollux_key': certs / f'{role}-key.pem',
    }


def cinder_options(settings: Settings) -> dict[str, Any]:
    return client_options(settings, 'cinder')


def nova_options(settings: Settings) -> dict[str, Any]:
    return client_options(settings, 'compute')


def client_environment(settings: Settings) -> dict[str, str]:
    """By which polluxctl finds the service."""
    certs = certificates(settings)
    return {
        'POLLUX_ADDRESS': f'{LOOPBACK}:{settings.ports.polluxd}',
        'POLLUX_CA': str(certs / 'ca.pem'),
        'POLLUX_CERTIFICATE': str(certs / 'admin.pem'),
        'POLLUX_KEY': str(certs / 'admin-key.pem'),
    }


def polluxctl(context: Context, *arguments: str) -> str:
    return context.processes.run('polluxctl', ['polluxctl', *arguments], env=client_environment(context.settings))


def start(context: Context) -> None:
    """Start the service and make its pool when it has none."""
    settings, processes = context.settings, context.processes
    certs = certificates(settings)
    if not (certs / 'ca.pem').exists():
        processes.run('polluxctl', ['polluxctl', 'certs', 'init', str(certs), '--host', settings.host])
    config = settings.etc / 'polluxd.toml'
    files.write(config, config_text(settings))
    program = build.polluxd_path(settings)
    changed_at_s = max(program.stat().st_mtime, config.stat().st_mtime)
    if processes.running(NAME) and changed_at_s > processes.started_at_s(NAME):
        # Guests do not notice: their attachments are back before anyone asks for them.
        processes.stop(NAME)
    if not processes.running(NAME):
        pid_file(settings).unlink(missing_ok=True)
    processes.start(NAME, [str(program), '--config', str(config)])

    def ready() -> bool:
        processes.must_run(NAME)
        return pid_file(settings).exists()
    wait.until('polluxd is ready', ready, READY_S, hint=f'see {processes.log(NAME)}')
    names = {row['Name'] for row in json.loads(polluxctl(context, 'pool', 'list', '-f', 'json'))}
    if settings.pool_name not in names:
        polluxctl(context, 'pool', 'create', settings.pool_name, '--file', str(settings.data / 'polluxd' / 'pool.img'),
                  '--size', str(settings.pool_bytes))


def pool(context: Context) -> dict[str, Any]:
    """The pool as polluxctl shows it."""
    return dict(json.loads(polluxctl(context, 'pool', 'show', context.settings.pool_name, '-f', 'json')))


def await_pool_like(context: Context, before: dict[str, Any]) -> dict[str, Any]:
    """The pool once it holds no more than `before`."""
    counted = ('volumes', 'snapshots', 'allocated_bytes', 'reserved_bytes', 'provisioned_bytes')

    def check() -> dict[str, Any] | None:
        now = pool(context)
        return now if all(now[key] == before[key] for key in counted) else None
    try:
        return wait.until('the pool is as empty as before', check, RECLAIM_S, 0.5)
    except AllInOneError as error:
        now = pool(context)
        differing = {key: (before[key], now[key]) for key in counted if now[key] != before[key]}
        raise AllInOneError(f'{error}: before and now differ in {differing}') from error
