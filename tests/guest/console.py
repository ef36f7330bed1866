"""A guest's console: every line with the time it came, a log file, and waiting for a line."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from guest.timing import Deadline

_TAIL_LINES = 40
# The kernel's own way to say that a guest will never print what a test waits for.
_FATAL = re.compile(r"Kernel panic - not syncing|Attempted to kill init")


class GuestError(Exception):
    """A guest died, stalled, or said something it must not. The text ends with its last lines."""


@dataclass(frozen=True)
class Line:
    at_s: float  # since the console was opened
    text: str


class Console:
    """Reads `stream` in a thread of its own until it ends.

    Lines are numbered from 0; `position` is the number that the next line will get, so that a test can
    say "from here on".
    """

    def __init__(self, name: str, stream: IO[bytes], log: Path) -> None:
        self._name = name
        self._start = time.monotonic()
        self._lines: list[Line] = []
        self._closed = False
        self._changed = threading.Condition()
        self.log = log
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    @property
    def position(self) -> int:
        with self._changed:
            return len(self._lines)

    def lines(self, start: int = 0) -> list[Line]:
        with self._changed:
            return self._lines[start:]

    def text(self, start: int = 0) -> str:
        return "\n".join(line.text for line in self.lines(start))

    def find_all(self, pattern: str, start: int = 0) -> list[re.Match[str]]:
        """The matches of `pattern` among the lines there are now, at most one a line."""
        found = (re.search(pattern, line.text) for line in self.lines(start))
        return [match for match in found if match]

    def wait(self, pattern: str, seconds: float, start: int = 0) -> re.Match[str]:
        """The first match of `pattern` in a line from `start` on.

        Raises GuestError when the console closes, the kernel panics, or the deadline of `seconds`
        (see guest.timing) runs out before such a line comes.
        """
        deadline = Deadline(seconds)
        at = start
        while True:
            with self._changed:
                while at < len(self._lines):
                    text = self._lines[at].text
                    match = re.search(pattern, text)
                    if match:
                        return match
                    if _FATAL.search(text):
                        raise self.error(f"panicked before {pattern!r}")
                    at += 1
                if self._closed:
                    raise self.error(f"ended before {pattern!r}")
                if deadline.expired():
                    raise self.error(f"no {pattern!r} within {deadline.elapsed:.0f} s")
                self._changed.wait(0.5)

    def wait_closed(self, seconds: float) -> None:
        """Wait until the console's writer has gone."""
        deadline = Deadline(seconds)
        with self._changed:
            while not self._closed:
                if deadline.expired():
                    raise self.error(f"still running after {deadline.elapsed:.0f} s")
                self._changed.wait(0.5)

    def error(self, what: str) -> GuestError:
        """A GuestError that says `what` and shows the end of the console."""
        # The lock of a Condition may be taken again by the thread that holds it.
        tail = "\n".join(f"{line.at_s:8.2f} {line.text}" for line in self.lines()[-_TAIL_LINES:])
        return GuestError(f"guest {self._name} {what}; console ({self.log}) ends with:\n{tail}")

    def _read(self, stream: IO[bytes]) -> None:
        with open(self.log, "w", encoding="utf-8") as log:
            for raw in stream:
                at_s = time.monotonic() - self._start
                text = raw.decode("utf-8", "replace").rstrip("\r\n")
                log.write(f"{at_s:8.2f} {text}\n")
                log.flush()
                with self._changed:
                    self._lines.append(Line(at_s, text))
                    self._changed.notify_all()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
