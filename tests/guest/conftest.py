"""Fixtures of the guest tests. A test that fails says where the guest's console and the service's log are."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from guest import bootimage

pytest_plugins = ["pollux_testing"]

SCRIPTS = Path(__file__).parent / "scripts"


def pytest_configure() -> None:
    # The runner ends a suite that takes too long with SIGTERM: fixtures and guests are still closed then.
    signal.signal(signal.SIGTERM, lambda _number, _frame: pytest.exit("terminated", returncode=1))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("POLLUX_TEST_LEVEL") != "full":
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(pytest.mark.skip(reason="only in the full run"))


@pytest.fixture(scope="session")
def boot_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk image that boots by BIOS and UEFI, see guest/bootimage.py."""
    path = tmp_path_factory.mktemp("image") / "boot.raw"
    bootimage.build(path, 64)
    return path


@pytest.fixture
def check_disk() -> str:
    return (SCRIPTS / "check-disk.sh").read_text()
