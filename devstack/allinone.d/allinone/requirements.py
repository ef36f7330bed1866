"""What the machine must offer. All of it is checked, and all that is missing is named, before anything is changed."""

from __future__ import annotations

import os
import pathlib
import platform
import shutil
import socket

from .errors import AllInOneError
from .process import Processes
from .settings import GIB, LOOPBACK, Settings


def available_memory_bytes() -> int:
    for line in pathlib.Path('/proc/meminfo').read_text().splitlines():
        if line.startswith('MemAvailable:'):
            return int(line.split()[1]) * 1024
    raise AllInOneError('/proc/meminfo has no MemAvailable line')


def release() -> dict[str, str]:
    """/etc/os-release as a dictionary (os-release(5)); empty when there is none."""
    path = pathlib.Path('/etc/os-release')
    if not path.exists():
        return {}
    pairs = (line.split('=', 1) for line in path.read_text().splitlines() if '=' in line)
    return {key: value.strip('"\'') for key, value in pairs}


def free_disk_bytes(path: pathlib.Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def port_taken(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return True
        return False


def localhost_is_loopback() -> bool:
    try:
        return socket.gethostbyname('localhost') == LOOPBACK
    except OSError:
        return False


def refuse(lacks: list[str]) -> None:
    """Raise when something is missing, with all of it."""
    if lacks:
        raise AllInOneError('\n'.join(['This machine lacks what is needed; nothing was changed:']
                                      + [f'  - {lack}' for lack in lacks]))


def system_lacks() -> list[str]:
    """What even a guest without OpenStack needs."""
    lacks: list[str] = []
    if os.geteuid() != 0:
        lacks.append('it must run as root: it starts libvirt and QEMU and installs Debian packages')
    system = release()
    if system.get('ID') != 'debian' or system.get('VERSION_ID') != '12':
        lacks.append(f'it is made for Debian 12; this is {system.get("PRETTY_NAME", "an unknown system")}')
    if platform.machine() != 'x86_64':
        lacks.append(f'it is made for x86_64; this is {platform.machine()}')
    if shutil.which('apt-get') is None:
        lacks.append('apt-get is not there')
    return lacks


def missing(settings: Settings, ports: bool = True) -> list[str]:
    """One sentence for each requirement that is not met. `ports` only matter when nothing of ours runs yet."""
    lacks = system_lacks()
    if available_memory_bytes() < settings.needed_memory_bytes:
        lacks.append(f'it needs {settings.needed_memory_bytes / GIB:.0f} GiB of available memory; '
                     f'there are {available_memory_bytes() / GIB:.1f} GiB')
    needed = settings.needed_disk_bytes
    if (settings.venv / 'bin').exists():
        needed //= 2
    free = free_disk_bytes(settings.state)
    if free < needed:
        lacks.append(f'it needs {needed / GIB:.0f} GiB of free disk space at {settings.state}; '
                     f'there are {free / GIB:.1f} GiB')
    if not localhost_is_loopback():
        lacks.append(f'the name localhost must stand for {LOOPBACK}; see /etc/hosts')
    if ports:
        lacks += [f'port {port} ({name}) on {LOOPBACK} is taken by another program'
                  for name, port in settings.ports.items() if port_taken(port)]
    return lacks


def check(settings: Settings, processes: Processes) -> None:
    """Raise with all that is missing. What already runs of ours holds its memory and ports, so these are not asked."""
    lacks = missing(settings, ports=not processes.names())
    if processes.names():
        lacks = [lack for lack in lacks if 'available memory' not in lack]
    refuse(lacks)
