"""The Python environment: pinned OpenStack packages, and the project's own package on top."""

from __future__ import annotations

import hashlib
import pathlib
import shutil
import subprocess
from collections.abc import Iterable

from . import files
from .errors import AllInOneError
from .progress import Progress
from .settings import Settings

PYTHON = '/usr/bin/python3'
HERE = pathlib.Path(__file__).resolve().parents[1]
REQUIREMENTS = HERE / 'requirements.in'
CONSTRAINTS = HERE / 'constraints.txt'


def digest(paths: Iterable[pathlib.Path]) -> str:
    """One hash over names and contents."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(f'{path.name}\0'.encode())
        whole.update(path.read_bytes())
    return whole.hexdigest()


def run(command: list[str], log: pathlib.Path) -> None:
    with log.open('a') as output:
        output.write(f'$ {" ".join(command)}\n')
        output.flush()
        # Not in the caller's folder: `python -m` looks for modules there.
        code = subprocess.run(command, cwd='/', stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                              check=False).returncode
    if code != 0:
        raise AllInOneError(f'{" ".join(command[:4])} ended with {code}; see {log}')


def install_openstack(settings: Settings, progress: Progress) -> None:
    """Make the environment unless one from the same lists is there. A half-made one is made anew."""
    wanted = digest([REQUIREMENTS, CONSTRAINTS])
    marker = settings.venv / '.lists'
    if marker.exists() and marker.read_text() == wanted:
        return
    log = settings.folder('logs') / 'pip.log'
    with progress.step('Python environment with OpenStack', log):
        if settings.venv.exists():
            shutil.rmtree(settings.venv)
        run([PYTHON, '-m', 'venv', str(settings.venv)], log)
        run([settings.program('pip'), 'install', '--disable-pip-version-check', '-r', str(REQUIREMENTS),
             '-c', str(CONSTRAINTS)], log)
        files.write(marker, wanted)


def project_sources(settings: Settings) -> list[pathlib.Path]:
    """What the project's Python package is made of."""
    places = [settings.repo / 'driver-python', settings.repo / 'thrift']
    found = [path for place in places for path in place.rglob('*') if path.is_file()]
    skipped = {'__pycache__', 'build', 'tests', '.pytest_cache', '.ruff_cache', '.mypy_cache'}
    return sorted(path for path in found
                  if not skipped.intersection(path.parts) and '.egg-info' not in str(path))


def install_project(settings: Settings, progress: Progress) -> bool:
    """Install the package `pollux` from the checkout when it differs from what is installed; True when it did."""
    wanted = digest(project_sources(settings))
    marker = settings.venv / '.project'
    if marker.exists() and marker.read_text() == wanted:
        return False
    log = settings.folder('logs') / 'pip.log'
    package = str(settings.repo / 'driver-python')
    pip = [settings.program('pip'), 'install', '--disable-pip-version-check', '-c', str(CONSTRAINTS)]
    with progress.step('Python package pollux', log):
        # By force: the version number stays the same while the sources change.
        run([*pip, '--force-reinstall', '--no-deps', package], log)
        # It is there, so this only fetches what it depends on.
        run([*pip, 'pollux'], log)
        files.write(marker, wanted)
    return True


def tools_path(settings: Settings) -> pathlib.Path:
    """The environment that has polluxctl: the cloud's when there is one, else a small one without OpenStack."""
    return settings.venv if (settings.venv / '.lists').exists() else settings.state / 'tools-venv'


def install_tools(settings: Settings, progress: Progress) -> None:
    """Make sure that the environment of these settings has polluxctl."""
    if not (settings.venv / 'bin' / 'pip').exists():
        run([PYTHON, '-m', 'venv', str(settings.venv)], settings.folder('logs') / 'pip.log')
    install_project(settings, progress)
