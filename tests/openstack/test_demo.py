"""What a user sees: API answers and the guests' own consoles, as the demo found them."""

from __future__ import annotations

import re
from typing import Any

import pytest

TRANSPORTS = ("scsi", "blk")


def test_every_step_of_the_demo_succeeds(demo: dict[str, Any]) -> None:
    failed = [step["name"] for step in demo["steps"] if step["result"] != "ok"]
    assert demo["ok"], f"{demo['failure']} (steps that failed: {failed})"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_guest_boots_from_the_volume_that_cinder_made(demo: dict[str, Any], transport: str) -> None:
    facts = demo["facts"][transport]
    serial = facts["boot_volume"] if transport == "scsi" else facts["boot_volume"][:20]
    booted = re.search(r"^@@POLLUX-BOOTED (.*)$", facts["console"], re.MULTILINE)
    assert booted, facts["console"][-2000:]
    assert f"serial={serial}" in booted.group(1).split()
    assert "dev=/dev/sd" in booted.group(1) if transport == "scsi" else "dev=/dev/vd" in booted.group(1)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_guest_wrote_and_read_back_the_volume_that_was_attached_to_it(demo: dict[str, Any], transport: str) -> None:
    facts = demo["facts"][transport]
    assert f"sha256={facts['written_sha256']}" in facts["console"]
    assert "@@DISK-MISMATCH" not in facts["console"]
    assert "@@DISK-WRITE-FAILED" not in facts["console"]
    assert "@@DISK-REMOVED" in facts["console"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_guests_kernel_saw_no_error(demo: dict[str, Any], transport: str) -> None:
    console = demo["facts"][transport]["console"]
    assert re.findall(r"^.*(?:I/O error|Buffer I/O|EXT4-fs error|Medium Error).*$", console, re.MULTILINE) == []


def test_a_volume_from_a_snapshot_holds_the_bytes_of_the_snapshot(demo: dict[str, Any]) -> None:
    facts = demo["facts"]["scsi"]
    assert facts["copy_sha256"] == facts["written_sha256"]
    assert facts["copy_volume"] != facts["data_volume"]


def test_the_pool_is_as_empty_as_before(demo: dict[str, Any]) -> None:
    for key in ("volumes", "snapshots", "allocated_bytes", "reserved_bytes", "provisioned_bytes"):
        assert demo["facts"]["pool_after"][key] == demo["facts"]["pool_before"][key], key
