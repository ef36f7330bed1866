"""`try`: polluxd and one guest, without OpenStack.

The guest is User-mode Linux, a Linux kernel that is an ordinary process. It drives a volume over vhost-user-scsi: it
writes, flushes, drops its caches and reads back. Everything lives in a scratch folder and is gone at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import socket
import sys
import tempfile
import uuid
from collections.abc import Iterator

from . import build, debian, polluxd, requirements, venv
from .common import Context
from .errors import AllInOneError
from .process import Processes
from .progress import Progress
from .settings import GIB, LOOPBACK, Ports, Settings

PACKAGES = (*debian.BUILD, 'python3', 'python3-venv', 'openssl', 'kmod')
VOLUME = 'try'
VOLUME_BYTES = 256 << 20
#: What the guest does; `serial` names the volume that it expects. /lib/guest.sh is tests/guest/files/guest.sh.
SCRIPT = r'''
. /lib/guest.sh
wait_for_disks 1 || { mark "FAILED no disk came"; exit 1; }
dev=$(disks)
[ "$(disk_serial "$dev")" = "$serial" ] || { mark "FAILED serial of $dev is $(disk_serial "$dev")"; exit 1; }
mark "DISK dev=/dev/$dev size=$(disk_size "$dev") serial=$(disk_serial "$dev")"
dd if=/dev/urandom of=/tmp/data bs=65536 count=256 2> /dev/null
dd if=/tmp/data of="/dev/$dev" bs=65536 conv=notrunc,fsync 2> /dev/null || { mark "FAILED write"; exit 1; }
mark "WROTE sha256=$(sha256sum < /tmp/data | cut -d' ' -f1)"
blockdev --flushbufs "/dev/$dev"
echo 3 > /proc/sys/vm/drop_caches
mark "READ sha256=$(dd if="/dev/$dev" bs=65536 count=256 iflag=direct 2> /dev/null | sha256sum | cut -d' ' -f1)"
'''


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def scratch_context(settings: Settings) -> Iterator[Context]:
    """A state folder and a namespace that end with the block, and so does every process started in them."""
    state = pathlib.Path(tempfile.mkdtemp(prefix='pollux-try-'))
    scratch = dataclasses.replace(settings, state=state, shared_venv=settings.venv, pool_bytes=GIB,
                                  ports=Ports(polluxd=free_port(), polluxd_metrics=free_port()))
    processes = Processes(scratch)
    try:
        processes.open_namespace({})
        yield Context(scratch, processes)
    finally:
        processes.stop_all([name for name in processes.names() if name == polluxd.NAME])
        processes.sweep()
        shutil.rmtree(state)


def check() -> None:
    """Raise with what the machine lacks, before anything is changed."""
    requirements.refuse(requirements.system_lacks())


def prepare(settings: Settings, progress: Progress) -> Settings:
    """Packages, polluxd and polluxctl; the settings by which these are found."""
    debian.install(progress, settings.logs / 'packages.log', PACKAGES, ())
    tools = dataclasses.replace(settings, shared_venv=venv.tools_path(settings))
    venv.install_tools(tools, progress)
    build.polluxd(tools, progress)
    return tools


def run(tools: Settings, progress: Progress) -> int:
    """Uses the one folder for guests' kernels and consoles, and for the rest a scratch folder."""
    sys.path.insert(0, str(tools.repo / 'tests'))
    os.environ.setdefault('POLLUX_TEST_CACHE', str(tools.folder('data', 'guest', 'cache')))
    os.environ.setdefault('POLLUX_TEST_LOGS', str(tools.folder('logs')))
    from guest.console import GuestError
    from guest.machine import VhostUserDisk
    from guest.uml import Uml

    with scratch_context(tools) as context:
        with progress.step('certificates, polluxd, a pool') as step:
            polluxd.start(context)
            step.note = f'{GIB >> 30} GiB in a file'
        with progress.step('a volume, attached') as step:
            volume = str(uuid.uuid4())
            polluxd.polluxctl(context, 'volume', 'create', '--pool', context.settings.pool_name, '--id', volume,
                              '--size', str(VOLUME_BYTES), VOLUME)
            client = str(uuid.uuid4())
            attachment = json.loads(polluxd.polluxctl(context, 'attach', volume, '--client', client,
                                                      '--transport', 'scsi', '-f', 'json'))
            step.note = volume
        disk = VhostUserDisk(pathlib.Path(attachment['socket_path']), 'scsi')
        with progress.step('User-mode Linux writes, flushes, reads back') as step, \
                Uml(SCRIPT, [disk], name='try', variables={'serial': volume}) as guest:
            try:
                guest.wait_script(60)
                wrote = guest.wait(r'@@WROTE sha256=(\S+)')[1]
                read = guest.wait(r'@@READ sha256=(\S+)')[1]
            except GuestError as error:
                raise AllInOneError(str(error)) from error
            lines = [line.text for line in guest.console.lines() if line.text.startswith('@@')]
            step.note = 'the same bytes' if wrote == read else 'DIFFERENT bytes'
        columns = ('read_ops', 'write_ops', 'flush_ops', 'read_bytes', 'write_bytes', 'errors')
        stats = polluxd.polluxctl(context, 'volume', 'stats', volume, *(f'-c{column}' for column in columns))
        with progress.step('everything stopped and removed'):
            polluxd.polluxctl(context, 'detach', attachment['attachment_id'])
            polluxd.polluxctl(context, 'controller', 'delete', client)
            polluxd.polluxctl(context, 'volume', 'delete', volume)
    progress.plain('\nThe guest said:\n' + '\n'.join(f'  {line}' for line in lines))
    progress.plain('\nThe service counted:\n' + stats)
    if wrote != read:
        raise AllInOneError(f'the guest read {read} where it had written {wrote}')
    progress.plain(f'16 MiB went through vhost-user-scsi into volume {volume} and came back the same.')
    return 0
