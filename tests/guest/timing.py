"""Deadlines that stretch with the load of the machine.

Emulated guests on a busy two-core machine take several times as long as on a quiet one. A test names
the seconds that suffice on a quiet machine; the deadline that follows grows with the load average and
with ``POLLUX_TEST_TIMEOUT_FACTOR``. A deadline only says when to give up: waiting ends as soon as the
awaited thing happens.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

_HIGHEST_LOAD_FACTOR = 5.0
# What a machine's neighbours take does not show in its load: giving up waits so many times as long at least.
_PATIENCE = 3.0


def stretch() -> float:
    """How many times the quiet machine's seconds to allow right now; at least 1."""
    load_per_core = os.getloadavg()[0] / (os.cpu_count() or 1)
    factor = min(max(1.0, 1.0 + load_per_core), _HIGHEST_LOAD_FACTOR)
    return factor * float(os.environ.get("POLLUX_TEST_TIMEOUT_FACTOR", "1"))


class Deadline:
    """Runs out once `seconds` of a quiet machine have passed."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._start = time.monotonic()
        self._stretch = max(_PATIENCE, stretch())

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._start

    def remaining(self) -> float:
        """Seconds of wall time left; not positive once the deadline has run out."""
        self._stretch = max(self._stretch, stretch())
        return self.seconds * self._stretch - self.elapsed

    def expired(self) -> bool:
        return self.remaining() <= 0


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll `condition` until it holds. Raises TimeoutError naming `what` when it does not in time."""
    deadline = Deadline(seconds)
    while not condition():
        if deadline.expired():
            raise TimeoutError(f"{what}: not within {deadline.elapsed:.1f} s")
        time.sleep(0.05)
