"""Small helpers for files that must be whole or absent."""

from __future__ import annotations

import json
import os
import pathlib
import secrets
from collections.abc import Mapping
from typing import Any

Sections = Mapping[str, Mapping[str, Any]]


def write(path: pathlib.Path, text: str, mode: int = 0o644) -> bool:
    """Replace `path` atomically; False when it already held `text`."""
    if path.exists() and path.read_text() == text:
        path.chmod(mode)
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f'.{path.name}.{os.getpid()}')
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, 'w') as stream:
        os.fchmod(descriptor, mode)
        stream.write(text)
    scratch.rename(path)
    return True


def write_ini(path: pathlib.Path, sections: Sections, mode: int = 0o600) -> bool:
    """An oslo.config file; booleans as oslo.config spells them, None left out. Private, since they hold passwords."""
    lines: list[str] = []
    for section, options in sections.items():
        lines.append(f'[{section}]')
        for key, value in options.items():
            if value is None:
                continue
            lines.append(f'{key} = {str(value).lower() if isinstance(value, bool) else value}')
        lines.append('')
    return write(path, '\n'.join(lines), mode)


def write_json(path: pathlib.Path, value: Any, mode: int = 0o644) -> None:
    write(path, json.dumps(value, indent=2, sort_keys=True) + '\n', mode)


def passwords(path: pathlib.Path, names: tuple[str, ...]) -> dict[str, str]:
    """The passwords kept in `path`, made at random for the names that have none yet."""
    known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    missing = [name for name in names if name not in known]
    if missing:
        known.update({name: secrets.token_hex(16) for name in missing})
        write_json(path, known, mode=0o600)
    return known
