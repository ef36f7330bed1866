"""Building polluxd with the project's own preset."""

from __future__ import annotations

import pathlib

from .progress import Progress
from .settings import Settings
from .venv import run

PRESET = 'release'


def polluxd_path(settings: Settings) -> pathlib.Path:
    return settings.repo / 'build' / PRESET / 'service' / 'polluxd'


def polluxd(settings: Settings, progress: Progress) -> pathlib.Path:
    """Configure once and build what changed; a build with nothing to do takes a second."""
    log = settings.folder('logs') / 'build.log'
    folder = polluxd_path(settings).parents[1]
    with progress.step('polluxd built', log):
        if not (folder / 'build.ninja').exists():
            run(['cmake', '--preset', PRESET, '-S', str(settings.repo), '-B', str(folder)], log)
        run(['cmake', '--build', str(folder), '--target', 'polluxd'], log)
    return polluxd_path(settings)
