"""What the user sees while the machine works: one line when a step begins and one when it ends, with its seconds.

Steps may run on several threads. A step that is silent for long shows the last line of its log file, so that a slow
download is not taken for a hang.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

HEARTBEAT_S = 20.0
#: A step that is over sooner than this leaves one line, not two.
QUICK_S = 0.3


@dataclasses.dataclass
class Step:
    """`result` is 'ok' or 'failed'; `note` is what the step found out, for the table."""

    name: str
    started_s: float
    seconds: float = 0.0
    result: str = 'running'
    note: str = ''


def last_line(path: pathlib.Path) -> str:
    """The last line with text in a log file, shortened; empty when there is none."""
    try:
        with path.open('rb') as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - 2000))
            lines = stream.read().decode(errors='replace').splitlines()
    except FileNotFoundError:
        return ''
    texts = [line.strip() for line in lines if line.strip()]
    return texts[-1][:100] if texts else ''


class Progress:
    def __init__(self, stream: TextIO = sys.stdout) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._started_s = time.monotonic()
        self.steps: list[Step] = []

    def say(self, text: str) -> None:
        elapsed_s = time.monotonic() - self._started_s
        with self._lock:
            self._stream.write(f'[{elapsed_s:6.1f} s] {text}\n')
            self._stream.flush()

    def plain(self, text: str) -> None:
        with self._lock:
            self._stream.write(text + '\n')
            self._stream.flush()

    @contextlib.contextmanager
    def step(self, name: str, log: pathlib.Path | None = None) -> Iterator[Step]:
        step = Step(name, time.monotonic())
        with self._lock:
            self.steps.append(step)
        over = threading.Event()
        watcher = threading.Thread(target=self._heartbeat, args=(step, log, over), daemon=True)
        watcher.start()
        try:
            yield step
        except BaseException:
            step.result = 'failed'
            raise
        else:
            step.result = 'ok'
        finally:
            over.set()
            watcher.join()
            step.seconds = time.monotonic() - step.started_s
            note = f': {step.note}' if step.note else ''
            self.say(f'{step.result:>6} {name} ({step.seconds:.1f} s){note}')

    def _heartbeat(self, step: Step, log: pathlib.Path | None, over: threading.Event) -> None:
        if over.wait(QUICK_S):
            return
        self.say(f'       {step.name} ...')
        while not over.wait(HEARTBEAT_S):
            seconds = time.monotonic() - step.started_s
            tail = last_line(log) if log else ''
            self.say(f'       {step.name} ... {seconds:.0f} s{": " + tail if tail else ""}')

    def elapsed_s(self) -> float:
        return time.monotonic() - self._started_s


def table(steps: list[Step], total_s: float) -> str:
    """The steps with their seconds, as the demo ends."""
    width = max([len(step.name) for step in steps] + [4])
    rule = f'+{"-" * (width + 2)}+---------+--------+'
    lines = [rule, f'| {"step":{width}} | seconds | result |', rule]
    lines += [f'| {step.name:{width}} | {step.seconds:7.1f} | {step.result:6} |' for step in steps]
    lines += [rule, f'| {"all":{width}} | {total_s:7.1f} |        |', rule]
    return '\n'.join(lines)
