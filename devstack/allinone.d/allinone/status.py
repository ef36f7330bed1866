"""What runs, since when, and how much memory it takes."""

from __future__ import annotations

import pathlib

from .cloud import Cloud
from .process import HOLDER, session_members


def resident_kib(pid: int) -> int:
    """Memory of a process that it shares with no other, in KiB; 0 when it is gone."""
    try:
        lines = pathlib.Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith('Pss:'))


def show(cloud: Cloud) -> int:
    """Prints a table; 1 when something that was started has ended by itself, else 0."""
    names = [name for name in cloud.processes.names() if name != HOLDER]
    if not names:
        print('Nothing runs.')
        return 0
    ports = dict(cloud.settings.ports.items())
    total_mib, gone = 0, 0
    print(f'{"service":18} {"state":8} {"pid":>8} {"MiB":>6}  port')
    for name in sorted(names):
        identity = cloud.processes.identity(name)
        if identity is None:
            gone += 1
            print(f'{name:18} {"gone":8} {"":>8} {"":>6}  see {cloud.processes.log(name)}')
            continue
        mib = sum(resident_kib(member.pid) for member in session_members(identity.pid)) // 1024
        total_mib += mib
        port = ports.get(name.removesuffix('-api'), '')
        print(f'{name:18} {"runs":8} {identity.pid:8} {mib:6}  {port}')
    guests = cloud.processes.guests()
    mib = sum(resident_kib(guest.pid) for guest in guests) // 1024
    print(f'{"guests":18} {len(guests):8} {"":8} {mib:6}')
    print(f'{total_mib + mib} MiB in all. To use the cloud: . {cloud.openrc}')
    return 1 if gone else 0
