"""Waiting for a condition with a deadline: the only way anything in here waits."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TypeVar

from .errors import AllInOneError

T = TypeVar('T')


def until(what: str, check: Callable[[], T | None], timeout_s: float, interval_s: float = 0.2,
          hint: str = '') -> T:
    """The first true answer of `check`; an error naming `what` when there is none within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = check()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            raise AllInOneError(f'{what}: not within {timeout_s:.0f} s{"; " + hint if hint else ""}')
        time.sleep(interval_s)


def port_open(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, port)) == 0


def unix_open(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError:
            return False
        return True
