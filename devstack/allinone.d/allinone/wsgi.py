"""An API service under uwsgi: one process, a few threads, on the loopback address."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Protocol

from . import wait
from .common import Context
from .process import Processes
from .settings import LOOPBACK, Settings

THREADS = 4


class Service(Protocol):
    """A module that runs one API."""

    def start(self, context: Context) -> None: ...

    def ready(self, context: Context) -> None: ...


def start(settings: Settings, processes: Processes, name: str, module: str, port: int,
          env: Mapping[str, str] | None = None, arguments: str = '') -> None:
    """Serve `module`; `arguments` become the application's sys.argv. Returns before it answers: see `ready`."""
    argv = ['uwsgi', '--plugin', 'python3', '--virtualenv', str(settings.venv), '--module', f'{module}:application',
            '--http-socket', f'{LOOPBACK}:{port}', '--processes', '1', '--threads', str(THREADS), '--enable-threads',
            '--need-app', '--die-on-term', '--buffer-size', '65535', '--add-header', 'Connection: close',
            '--procname', f'pollux-{name}', '--disable-logging', '--listen', '64', '--lazy-apps']
    if arguments:
        argv += ['--pyargv', arguments]
    processes.start(name, argv, env=env)


def answers(url: str) -> bool:
    """The service gives some HTTP answer that is no fault of its own (a 401 says that it works)."""
    try:
        with urllib.request.urlopen(url, timeout=10):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


def ready(settings: Settings, processes: Processes, name: str, port: int, timeout_s: float = 120) -> None:
    def check() -> bool:
        processes.must_run(name)
        return wait.port_open(LOOPBACK, port) and answers(settings.url(port, '/'))
    wait.until(f'{name} answers', check, timeout_s, hint=f'see {processes.log(name)}')
