"""A client of QEMU's machine protocol (docs/interop/qmp-spec in QEMU): commands and events."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

from guest.timing import Deadline, wait_until

_ANSWER_S = 20


class QmpError(Exception):
    """QEMU refused a command, or its monitor went away."""


class Qmp:
    """Connects to the monitor at `path`, waiting for QEMU to create it. For one thread at a time."""

    def __init__(self, path: Path, seconds: float = _ANSWER_S) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        wait_until(lambda: self._connect(path), seconds, f"QEMU's monitor at {path}")
        self._stream = self._socket.makefile("rwb")
        self._events: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._receive(Deadline(seconds))  # the greeting
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: Any) -> Any:
        """Run a command; its return value."""
        with self._lock:
            request = {"execute": name, "arguments": arguments}
            self._stream.write(json.dumps(request).encode() + b"\n")
            self._stream.flush()
            deadline = Deadline(_ANSWER_S)
            while True:
                reply = self._receive(deadline)
                if "event" in reply:
                    self._events.append(reply)
                elif "error" in reply:
                    raise QmpError(f"{name}: {reply['error'].get('desc')}")
                else:
                    return reply["return"]

    def wait_event(self, name: str, seconds: float = _ANSWER_S, **data: Any) -> dict[str, Any]:
        """The data of the next event `name` that carries `data`; events before it are dropped."""
        deadline = Deadline(seconds)
        with self._lock:
            while True:
                while self._events:
                    event = self._events.pop(0)
                    carried = event.get("data", {})
                    if event["event"] == name and data.items() <= carried.items():
                        return dict(carried)
                message = self._receive(deadline)
                if "event" in message:
                    self._events.append(message)

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def _connect(self, path: Path) -> bool:
        try:
            self._socket.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def _receive(self, deadline: Deadline) -> dict[str, Any]:
        remaining = deadline.remaining()
        if remaining <= 0:
            raise QmpError(f"no answer within {deadline.elapsed:.0f} s")
        self._socket.settimeout(remaining)
        try:
            line = self._stream.readline()
        except TimeoutError:
            raise QmpError(f"no answer within {deadline.elapsed:.0f} s") from None
        if not line:
            raise QmpError("QEMU closed its monitor")
        message: dict[str, Any] = json.loads(line)
        return message
