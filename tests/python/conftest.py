"""Fixtures of the Python package's tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pollux_testing import Polluxd

from python.services import Service


@pytest.fixture(scope="session")
def start_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Service]]:
    """Starts services that end with the session."""
    with tempfile.TemporaryDirectory(prefix="pollux-py-") as scratch:
        services: list[Service] = []

        def start(name: str, **options: Any) -> Service:
            folder = Path(tempfile.mkdtemp(dir=scratch))
            logs = Path(os.environ.get("POLLUX_TEST_LOGS") or tmp_path_factory.getbasetemp())
            polluxd = Polluxd(folder, logs / f"polluxd-{name}.log", **options)
            polluxd.start()
            services.append(Service(polluxd))
            services[-1].create_pool()
            return services[-1]

        yield start
        for service in services:
            service.close()


@pytest.fixture(scope="session")
def service(start_service: Callable[..., Service]) -> Service:
    """One for all tests that leave it running."""
    return start_service("shared")


@pytest.fixture
def own_service(start_service: Callable[..., Service], request: pytest.FixtureRequest) -> Service:
    """One that the test may stop and kill."""
    return start_service(request.node.name.replace("/", "-"))


@pytest.fixture(autouse=True)
def _no_configuration_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("POLLUX_")]:
        if name in ("POLLUX_ADDRESS", "POLLUX_CA", "POLLUX_CERTIFICATE", "POLLUX_KEY", "POLLUX_CLIENT_CONF"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
