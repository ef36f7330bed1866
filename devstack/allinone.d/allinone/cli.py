"""The verbs of devstack/allinone."""

from __future__ import annotations

import argparse
import collections
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable

from . import demo, files, quickstart, status
from .cloud import Cloud
from .errors import AllInOneError
from .progress import Progress, table
from .settings import DEFAULT_STATE, STATE_VARIABLE, Settings

DESCRIPTION = """\
A small, real OpenStack on this machine with Pollux as its block storage: keystone, glance, placement, nova, cinder,
MariaDB, RabbitMQ, libvirt, QEMU and polluxd, all on the loopback address, without systemd, Neutron or hugepages.
"""
EPILOG = f"""\
Everything that is written at run time lies in the state folder: {DEFAULT_STATE}, or what --state or the environment
variable {STATE_VARIABLE} names. Verbs may be repeated; each does what is still missing.

Needs Debian 12 on x86_64, root, 6 GiB of free memory and 10 GiB of free disk; `demo` takes up to 25 minutes the first
time, most of it for packages and the build, and a few minutes later on.
"""


def up(cloud: Cloud, arguments: argparse.Namespace) -> int:
    cloud.check()
    with cloud.locked():
        cloud.install()
        cloud.up()
    cloud.progress.plain(f'\nThe cloud is up. To use it:\n  . {cloud.openrc}\n  openstack volume list')
    return 0


def run_demo(cloud: Cloud, arguments: argparse.Namespace) -> int:
    """Leaves the machine as it was: a cloud that was up stays up, one that was started for the demo is stopped."""
    cloud.check()
    with cloud.locked():
        was_up = cloud.is_up()
        tour = demo.Demo(cloud)
        failure: AllInOneError | None = None
        try:
            try:
                cloud.install()
                cloud.up()
                tour.run()
            except AllInOneError as error:
                failure = error
        finally:
            if not was_up and not arguments.keep:
                cloud.down()
        cloud.progress.plain('\n' + table(cloud.progress.steps, cloud.progress.elapsed_s()))
        if arguments.json:
            files.write_json(pathlib.Path(arguments.json), tour.report(failure))
        if failure:
            cloud.progress.plain(f'\nThe demo failed: {failure}\nLogs: {cloud.settings.logs}')
            return 1
        cloud.progress.plain('\n' + tour.summary())
    return 0


def run_try(cloud: Cloud, arguments: argparse.Namespace) -> int:
    quickstart.check()
    with cloud.locked():
        settings = quickstart.prepare(cloud.settings, cloud.progress)
    return quickstart.run(settings, cloud.progress)


def show_status(cloud: Cloud, arguments: argparse.Namespace) -> int:
    return status.show(cloud)


def logs(cloud: Cloud, arguments: argparse.Namespace) -> int:
    folder = cloud.settings.logs
    if not arguments.service:
        for path in sorted(folder.glob('*.log')):
            print(f'{path.stem:20} {path.stat().st_size:>10} bytes  {path}')
        return 0
    path = folder / f'{arguments.service}.log'
    if not path.exists():
        raise AllInOneError(f'there is no {path}; `devstack/allinone logs` lists what there is')
    if arguments.follow:
        return subprocess.run(['tail', '-n', str(arguments.lines), '-F', str(path)], check=False).returncode
    with path.open(errors='replace') as stream:
        sys.stdout.writelines(collections.deque(stream, arguments.lines))
    return 0


def down(cloud: Cloud, arguments: argparse.Namespace) -> int:
    if cloud.settings.state.exists():
        with cloud.locked():
            cloud.down()
    return 0


def clean(cloud: Cloud, arguments: argparse.Namespace) -> int:
    if cloud.settings.state.exists():
        with cloud.locked():
            cloud.down()
            cloud.clean()
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog='devstack/allinone', description=DESCRIPTION, epilog=EPILOG,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument('--state', metavar='DIR', help='the state folder')
    verbs = top.add_subparsers(dest='verb', required=True, metavar='VERB')

    def add(name: str, action: Callable[[Cloud, argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + '.')
        verb.set_defaults(action=action)
        return verb

    add('up', up, 'install what is missing and start the cloud')
    verb = add('demo', run_demo, 'start the cloud, do with it what a user would, and stop it again if it was not up')
    verb.add_argument('--keep', action='store_true', help='leave the cloud running afterwards')
    verb.add_argument('--json', metavar='FILE', help='write steps and what was seen as JSON')
    add('try', run_try, 'show polluxd with one guest and without OpenStack, in under a minute once built')
    add('status', show_status, 'say what runs; ends with 1 when something that was started is gone')
    verb = add('logs', logs, 'list the logs, or print the end of one')
    verb.add_argument('service', nargs='?', help='a service, as `status` names it')
    verb.add_argument('-n', '--lines', type=int, default=50, help='how many lines (default: 50)')
    verb.add_argument('-f', '--follow', action='store_true', help='go on as the log grows')
    add('down', down, 'stop everything that was started; data is kept')
    add('clean', clean, 'stop everything and remove the state folder; Debian packages stay')
    return top


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    os.umask(0o022)
    # As Ctrl-C does: whatever is under way ends what it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return int(arguments.action(Cloud(Settings.load(arguments.state), Progress()), arguments))
    except AllInOneError as error:
        print(f'allinone: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nallinone: interrupted; `devstack/allinone down` stops what runs', file=sys.stderr)
        return 130
