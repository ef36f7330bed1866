"""The ordinary `openstack` command, and waiting for what it says."""

from __future__ import annotations

import functools
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

from . import wait
from .errors import AllInOneError
from .identity import Api
from .progress import Progress

#: Deadlines, not expectations: emulation on a busy machine is ten times slower than on an idle one.
VOLUME_S = 300.0
SERVER_S = 600.0
POLL_S = 0.5


class OpenStack:
    """Commands run as a user would type them; `compute` and `volume` make clients of the same APIs for waiting."""

    def __init__(self, program: str, environment: Mapping[str, str], progress: Progress,
                 compute: Callable[[], Api], volume: Callable[[], Api]) -> None:
        self._program = program
        self._compute = functools.cache(compute)
        self._volume = functools.cache(volume)
        self._environment = dict(environment)
        self._progress = progress

    def _call(self, arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self._program, *arguments], env=self._environment, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, check=False, timeout=600)

    def quiet(self, *arguments: str) -> str:
        """Run it and return what it prints; an error with its message when it fails."""
        done = self._call(arguments)
        if done.returncode != 0:
            raise AllInOneError(f'openstack {shlex.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}')
        return done.stdout

    def run(self, *arguments: str) -> str:
        """As `quiet`, and the user sees the command."""
        self._progress.plain(f'           $ openstack {shlex.join(arguments)}')
        return self.quiet(*arguments)

    def create(self, *arguments: str) -> dict[str, Any]:
        """A command that makes something: what it made."""
        self._progress.plain(f'           $ openstack {shlex.join(arguments)}')
        return dict(json.loads(self.quiet(*arguments, '-f', 'json')))

    def show(self, *arguments: str) -> dict[str, Any]:
        return dict(json.loads(self.quiet(*arguments, '-f', 'json')))

    # ------------------------------------------------------------------ waiting

    def find(self, kind: tuple[str, ...], name: str) -> dict[str, Any] | None:
        """A server, volume or snapshot by its name, as the API describes it; asked directly, since a command takes a
        second of processor time and waiting asks often."""
        if kind == ('server',):
            found = self._compute().get(f'/servers/detail?name=^{name}$')['servers']
        else:
            collection = {('volume',): 'volumes', ('volume', 'snapshot'): 'snapshots',
                          ('volume', 'backup'): 'backups'}[kind]
            found = self._volume().get(f'/{collection}/detail?name={name}')[collection]
        return dict(found[0]) if found else None

    def exists(self, kind: tuple[str, ...], name: str) -> bool:
        return self.find(kind, name) is not None

    def await_status(self, kind: tuple[str, ...], name: str, wanted: str, timeout_s: float) -> dict[str, Any]:
        """The object once its status is `wanted`. An error status ends the wait at once."""
        def check() -> dict[str, Any] | None:
            thing = self.find(kind, name)
            if thing is None:
                raise AllInOneError(f'{" ".join(kind)} {name} is gone')
            status = str(thing['status']).lower()
            if status == wanted:
                return thing
            if status.startswith('error'):
                detail = thing.get('fault') or self.messages(str(thing['id']))
                raise AllInOneError(f'{" ".join(kind)} {name} is in status {status}: {detail}')
            return None
        return wait.until(f'{" ".join(kind)} {name} is {wanted}', check, timeout_s, POLL_S)

    def messages(self, resource: str) -> str:
        """What Cinder tells the user about a volume that failed."""
        rows = json.loads(self.quiet('--os-volume-api-version', '3.3', 'volume', 'message', 'list', '-f', 'json'))
        texts = [str(row.get('User Message')) for row in rows if row.get('Resource UUID') == resource]
        return '; '.join(texts) or 'there is no message'

    def await_volume(self, name: str, wanted: str) -> dict[str, Any]:
        return self.await_status(('volume',), name, wanted, VOLUME_S)

    def await_gone(self, kind: tuple[str, ...], name: str, timeout_s: float = SERVER_S) -> None:
        wait.until(f'{" ".join(kind)} {name} is gone', lambda: not self.exists(kind, name), timeout_s, POLL_S)

    def await_console(self, server: str, pattern: str, timeout_s: float = SERVER_S, after: int = 0) -> re.Match[str]:
        """The first match of `pattern` in the guest's console beyond its first `after` characters."""
        def check() -> re.Match[str] | None:
            return re.compile(pattern, re.MULTILINE).search(self.console(server), after)
        return wait.until(f'the console of {server} shows {pattern}', check, timeout_s, POLL_S,
                          hint=f'openstack console log show {server}')

    def console(self, server: str) -> str:
        """What the guest has printed on its serial port."""
        thing = self.find(('server',), server)
        if thing is None:
            raise AllInOneError(f'server {server} is gone')
        answer = self._compute().post(f'/servers/{thing["id"]}/action', {'os-getConsoleOutput': {}})
        return str(answer['output']).replace('\r', '')
