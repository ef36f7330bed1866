"""libvirt without systemd: a libvirtd of our own, whose files live in the state folder.

libvirt's paths are fixed at compile time, so they are bind-mounted in the private namespace; the machine's own libvirt,
should it have one, is neither read nor changed.
"""

from __future__ import annotations

import pathlib

from . import files, wait
from .common import Context
from .settings import Settings

NAME = 'libvirtd'
SOCKET = '/run/libvirt/libvirt-sock'


def binds(settings: Settings) -> dict[pathlib.Path, pathlib.Path]:
    """Mount point to source, for the private namespace. /run is all ours there: /run/libvirt need not exist outside."""
    base = settings.state / 'libvirt'
    return {
        pathlib.Path('/run'): base / 'run',
        pathlib.Path('/etc/libvirt'): base / 'etc',
        pathlib.Path('/var/lib/libvirt'): base / 'lib',
        pathlib.Path('/var/log/libvirt'): base / 'log',
        pathlib.Path('/var/cache/libvirt'): base / 'cache',
    }


def start(context: Context) -> None:
    base = context.settings.state / 'libvirt'
    for folder in ('run/libvirt', 'etc', 'lib/qemu', 'log/qemu', 'cache/qemu'):
        (base / folder).mkdir(parents=True, exist_ok=True)
    files.write(base / 'etc' / 'qemu.conf', '\n'.join([
        'user = "root"',
        'group = "root"',
        'dynamic_ownership = 0',
        'remember_owner = 0',
        'security_driver = "none"',
        # No systemd means no machine slices and no virtlogd socket.
        'cgroup_controllers = [ ]',
        'namespaces = [ ]',
        'stdio_handler = "file"',
        '',
    ]))
    files.write(base / 'etc' / 'libvirtd.conf', '\n'.join([
        'auth_unix_ro = "none"',
        'auth_unix_rw = "none"',
        'log_outputs = "2:stderr"',
        '',
    ]))
    context.processes.start(NAME, ['libvirtd'])


def ready(context: Context) -> None:
    """libvirtd answers and knows QEMU. Probing QEMU's abilities takes a few seconds the first time."""
    def check() -> bool:
        context.processes.must_run(NAME)
        return bool(context.processes.run('virsh', ['virsh', '-q', '-c', 'qemu:///system', 'version']))
    socket = context.settings.state / 'libvirt' / 'run' / 'libvirt' / 'libvirt-sock'

    def listening() -> bool:
        context.processes.must_run(NAME)
        return wait.unix_open(str(socket))
    wait.until('libvirtd listens', listening, 60)
    wait.until('libvirt knows QEMU', check, 60)
