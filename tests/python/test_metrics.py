"""What the page of metrics costs."""

from __future__ import annotations

import re
import statistics
import urllib.request
from collections.abc import Callable
from pathlib import Path

from pollux_testing import MIB

from python.services import POOL, Service, new_id, volume_spec

_VOLUMES = 1000
_PAGES = 7


def page(service: Service) -> list[str]:
    with urllib.request.urlopen(service.polluxd.metrics_url, timeout=60) as answer:
        return answer.read().decode().splitlines()


class Thread:
    """One of the service's threads, by its name."""

    def __init__(self, pid: int, name: str) -> None:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        self._folder = next(task for task in tasks if (task / "comm").read_text().strip() == name)

    def processor_ms(self) -> float:
        return int((self._folder / "schedstat").read_text().split()[0]) / 1e6

    def waits(self) -> int:
        """How often it has waited for something."""
        found = re.search(r"^voluntary_ctxt_switches:\s*(\d+)", (self._folder / "status").read_text(), re.MULTILINE)
        assert found
        return int(found.group(1))


def test_a_page_with_a_thousand_volumes_asks_no_reactor_for_each_of_them(
    start_service: Callable[..., Service]
) -> None:
    service = start_service("metrics", metrics=True)
    client = service.client()
    for _ in range(_VOLUMES):
        client.volume_create(POOL, volume_spec(new_id(), MIB))
    lines = page(service)
    assert sum(line.startswith("pollux_volume_errors_total{") for line in lines) == _VOLUMES
    assert "pollux_metrics_incomplete 0" in lines
    thread = Thread(service.polluxd.pid, "metrics")
    waits, milliseconds = [], []
    for _ in range(_PAGES):
        waits_before, ms_before = thread.waits(), thread.processor_ms()
        page(service)
        waits.append(thread.waits() - waits_before)
        milliseconds.append(thread.processor_ms() - ms_before)
    print(f"waits {waits}, milliseconds {milliseconds}")
    # For an answer of a reactor, and for the client to take the page.
    assert statistics.median(waits) < _VOLUMES / 5
    assert statistics.median(milliseconds) < 30
