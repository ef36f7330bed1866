"""Debian packages: what is needed, from which suite, and without any package starting a service.

QEMU and libvirt come from the backports suite (a vhost-user-scsi guest survives a restart of its back end only from
QEMU 8.2 on). The suite is added by copying the machine's own source entry, whatever mirror that names.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Iterator

from .errors import AllInOneError
from .progress import Progress

SUITE = 'bookworm-backports'
APT = pathlib.Path('/etc/apt')
POLICY = pathlib.Path('/usr/sbin/policy-rc.d')

#: To build polluxd.
BUILD = (
    'cmake', 'g++', 'ninja-build', 'pkg-config', 'libblkid-dev', 'libboost-dev', 'libboost-test-dev', 'libcli11-dev',
    'libdpdk-dev', 'libexpected-dev', 'libfmt-dev', 'libisal-dev', 'libspdlog-dev', 'libsqlite3-dev', 'libssl-dev',
    'libthrift-dev', 'libtomlplusplus-dev', 'liburing-dev', 'libuv1-dev', 'librapidcheck-dev',
    'thrift-compiler', 'uuid-dev',
)
#: To build the guest's image.
GUEST = ('dosfstools', 'e2fsprogs', 'gdisk', 'grub-common', 'grub-efi-amd64-bin', 'grub-pc-bin', 'kmod', 'mtools',
         'seabios')
#: Services of the cloud. Where Debian has a server without its unit files, that is the one.
SERVICES = ('python3', 'python3-venv', 'python3-dev', 'mariadb-server-core', 'mariadb-client-core',
            'rabbitmq-server', 'uwsgi-core', 'uwsgi-plugin-python3', 'openssl')
#: From backports.
NEWER = ('libvirt-daemon', 'libvirt-daemon-driver-qemu', 'libvirt-clients', 'libvirt-dev',
         'qemu-system-x86', 'qemu-utils')
#: What the newer packages may take along from backports. Everything else stays Debian 12's.
FAMILIES = 'qemu* libvirt* seabios ipxe-qemu'
#: Packages that bring units which systemd would start from the next boot on.
DORMANT = {'rabbitmq-server': ('rabbitmq-server.service', 'epmd.service', 'epmd.socket')}


def installed(package: str) -> str | None:
    """The version of an installed package, else None."""
    done = subprocess.run(['dpkg-query', '-W', '-f', '${db:Status-Abbrev} ${Version}', package],
                          capture_output=True, text=True, check=False)
    status, _, version = done.stdout.partition(' ')
    version = version.strip()
    return version if done.returncode == 0 and status.startswith('ii') and version else None


def absent(base: tuple[str, ...], newer: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """What has to be installed: packages that are not there, and newer ones that are there in Debian 12's version."""
    wanted_base = [package for package in base if package not in newer and installed(package) is None]
    wanted_newer = [package for package in newer if '~bpo12' not in (installed(package) or '')]
    return wanted_base, wanted_newer


def own_entry(apt: pathlib.Path = APT) -> tuple[str, str]:
    """The machine's source entry for the suite `bookworm`, turned into one for backports: (file suffix, text)."""
    folder = apt / 'sources.list.d'
    for path in sorted(folder.glob('*.sources')):
        for stanza in re.split(r'\n\s*\n', path.read_text()):
            text = '\n'.join(line for line in stanza.splitlines() if not line.startswith('#'))
            suites = re.search(r'^Suites:(.*)$', text, re.MULTILINE | re.IGNORECASE)
            binary = re.search(r'^Types:.*\bdeb\b(?!-)', text, re.MULTILINE | re.IGNORECASE)
            if suites and binary and 'bookworm' in suites.group(1).split():
                return '.sources', re.sub(r'(?im)^Suites:.*$', f'Suites: {SUITE}', text).strip() + '\n'
    for path in [apt / 'sources.list', *sorted(folder.glob('*.list'))]:
        for line in path.read_text().splitlines() if path.exists() else []:
            match = re.match(r'^(deb\s+(?:\[[^]]*\]\s+)?\S+\s+)bookworm(\s+.*)$', line)
            if match:
                return '.list', f'{match.group(1)}{SUITE}{match.group(2)}\n'
    raise AllInOneError('no apt source for the suite "bookworm" was found, so there is none to copy for backports')


def suite_known(apt: pathlib.Path = APT) -> bool:
    """Some source entry names the backports suite."""
    places = [apt / 'sources.list', *(apt / 'sources.list.d').glob('*.list'),
              *(apt / 'sources.list.d').glob('*.sources')]
    lines = [line for path in places if path.exists() for line in path.read_text().splitlines()]
    return any(SUITE in line.split() for line in lines if not line.lstrip().startswith('#'))


@contextlib.contextmanager
def services_stay_down() -> Iterator[None]:
    """While inside, invoke-rc.d refuses to start services; the machine's own policy is back afterwards."""
    kept = POLICY.with_name('policy-rc.d.pollux-kept')
    if kept.exists():
        kept.rename(POLICY)
    had = POLICY.exists()
    if had:
        POLICY.rename(kept)
    POLICY.write_text('#!/bin/sh\n# No service is started by a package that is installed now.\nexit 101\n')
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)
        if had:
            kept.rename(POLICY)


@contextlib.contextmanager
def preferring_backports() -> Iterator[list[str]]:
    """Options for apt-get by which FAMILIES come from backports, on top of the machine's own preferences. Naming a
    suite for each package would not do: apt does not take it over to what they depend on."""
    own = pathlib.Path('/etc/apt/preferences')
    kept = own.read_text() if own.exists() else ''
    with tempfile.NamedTemporaryFile('w', prefix='pollux-apt-') as stream:
        stream.write(f'Package: {FAMILIES}\nPin: release n={SUITE}\nPin-Priority: 990\n\n{kept}')
        stream.flush()
        os.chmod(stream.name, 0o644)
        yield ['-o', f'Dir::Etc::Preferences={stream.name}']


def apt_get(arguments: list[str], log: pathlib.Path) -> None:
    command = ['apt-get', '-o', 'DPkg::Lock::Timeout=600', '-o', 'Acquire::Retries=3', *arguments]
    environment = dict(os.environ, DEBIAN_FRONTEND='noninteractive', LC_ALL='C.UTF-8')
    with log.open('a') as output:
        output.write(f'$ {" ".join(command)}\n')
        output.flush()
        code = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=output,
                              stderr=subprocess.STDOUT, check=False).returncode
    if code != 0:
        raise AllInOneError(f'apt-get ended with {code}; see {log}')


def install(progress: Progress, log: pathlib.Path, base: tuple[str, ...], newer: tuple[str, ...]) -> None:
    """Install what is not there, `newer` from backports. Nothing is touched when all of it is."""
    wanted_base, wanted_newer = absent(base, newer)
    if not wanted_base and not wanted_newer:
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    count = len(wanted_base) + len(wanted_newer)
    with progress.step(f'Debian packages ({count} to install)', log), services_stay_down():
        if wanted_newer and not suite_known():
            suffix, text = own_entry()
            (APT / 'sources.list.d' / f'pollux-backports{suffix}').write_text(text)
        apt_get(['update'], log)
        with preferring_backports() as options:
            apt_get([*options, 'install', '-y', '--no-install-recommends', *wanted_base, *wanted_newer], log)
        if pathlib.Path('/run/systemd/system').is_dir():
            for package in DORMANT.keys() & set(wanted_base):
                subprocess.run(['systemctl', 'disable', '--quiet', *DORMANT[package]], check=True)
