"""What all guests that a test starts have in common: a process, a console, a scratch folder."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from guest.console import Console

_END_S = 20


@dataclass(frozen=True)
class VhostUserDisk:
    """A vhost-user socket that a guest gets as a device.

    `transport` is ``scsi`` or ``blk``. `queues` counts request queues. `reconnect_ms`: QEMU opens the
    socket again so long after it lost it; 0 means never. `packed`: QEMU offers packed virtqueues.
    `boot`: the firmware boots from it, from `boot_target` when it is a scsi controller. User-mode Linux
    asks the back end how many queues it has and knows neither reconnecting nor booting.
    """

    socket: Path
    transport: str
    queues: int = 2
    reconnect_ms: int = 1000
    packed: bool = False
    boot: bool = False
    boot_target: int = 0

    def __post_init__(self) -> None:
        if self.transport not in ("scsi", "blk"):
            raise ValueError(f"transport is scsi or blk, not {self.transport!r}")


def log_dir() -> Path:
    """Where consoles are logged: ``$POLLUX_TEST_LOGS``, else a folder in the temporary directory."""
    path = Path(os.environ.get("POLLUX_TEST_LOGS", f"{tempfile.gettempdir()}/pollux-guest-logs"))
    path.mkdir(parents=True, exist_ok=True)
    return path


class Machine(ABC):
    """A guest. A context manager: entering it starts the guest, leaving it kills what is left of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._scratch: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._console: Console | None = None

    @property
    def scratch(self) -> Path:
        """A folder that lives as long as the guest."""
        if self._scratch is None:
            raise RuntimeError(f"guest {self.name} has not been started")
        return self._scratch

    @property
    def process(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"guest {self.name} has not been started")
        return self._process

    @property
    def console(self) -> Console:
        if self._console is None:
            raise RuntimeError(f"guest {self.name} has not been started")
        return self._console

    def start(self) -> None:
        """Start the guest; returns before it has booted. Nothing is left behind when that fails."""
        self._scratch = Path(tempfile.mkdtemp(prefix=f"pollux-{self.name}-"))
        try:
            self._launch()
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _launch(self) -> None:
        """Build the command and _spawn it; `scratch` is there."""

    def wait(self, pattern: str, seconds: float = 30, start: int = 0) -> re.Match[str]:
        """Wait for a console line; see Console.wait."""
        return self.console.wait(pattern, seconds, start)

    def send(self, text: str) -> None:
        """Type a line on the guest's console."""
        stdin = self.process.stdin
        if stdin is None:
            raise RuntimeError(f"guest {self.name} has no console input")
        stdin.write(text.encode() + b"\n")
        stdin.flush()

    def wait_script(self, seconds: float = 60) -> None:
        """Wait for the guest's script to end. Raises GuestError unless it ended well."""
        done = self.wait(r"@@DONE rc=(\d+)", seconds)
        if done[1] != "0":
            raise self.console.error(f"script failed with status {done[1]}")

    def wait_end(self, seconds: float = 30) -> int:
        """Wait until the guest has powered off; the status of its process."""
        self.console.wait_closed(seconds)
        return self.process.wait(_END_S)

    def close(self) -> None:
        """Kill the guest if it still runs and remove its scratch folder."""
        if self._process is not None:
            _kill_group(self._process)
            if self._process.stdin is not None:
                self._process.stdin.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _spawn(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start `command` with its standard input and output as the guest's console.

        It leads a process group of its own, which is what `close` kills, and dies with this process.
        """
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        assert self._process.stdout is not None
        log = log_dir() / f"{self.name}-{self._process.pid}.console"
        self._console = Console(self.name, self._process.stdout, log)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):  # every process of the group has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(_END_S)
