"""cinder-backup with the posix back end: what a restored volume holds is what was backed up, byte for byte."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from allinone import guest_image, polluxd
from allinone.cloud import Cloud
from allinone.demo import guest_serial
from allinone.openstack import SERVER_S, VOLUME_S, OpenStack

VOLUME, SNAPSHOT, BACKUP, SERVER = ("volume",), ("volume", "snapshot"), ("volume", "backup"), ("server",)
PREFIX = "pollux-backup"


@pytest.fixture(scope="module")
def volume(cloud: Cloud, openstack: OpenStack) -> Iterator[str]:
    """A volume that boots and holds a few MiB; everything that is named after it goes with it."""
    image = guest_image.path(cloud.settings)
    openstack.create("image", "create", "--disk-format", "raw", "--container-format", "bare", "--file", str(image),
                     PREFIX)
    openstack.create("flavor", "create", "--ram", "256", "--disk", "0", "--vcpus", "1", PREFIX)
    openstack.create("volume", "create", "--image", PREFIX, "--size", "1", "--type", "pollux", PREFIX)
    openstack.await_volume(PREFIX, "available")
    yield PREFIX
    for kind in (BACKUP, SNAPSHOT, VOLUME):
        listed = openstack.quiet(*kind, "list", "-f", "value", "-c", "Name").splitlines()
        for name in sorted(one for one in listed if one.startswith(PREFIX)):
            openstack.run(*kind, "delete", name)
            openstack.await_gone(kind, name)
    openstack.run("image", "delete", PREFIX)
    openstack.run("flavor", "delete", PREFIX)


def backed_up_and_restored(openstack: OpenStack, name: str, *arguments: str) -> str:
    """The name of a new volume that a new backup was restored into."""
    openstack.create("volume", "backup", "create", "--name", name, *arguments, PREFIX)
    openstack.await_status(BACKUP, name, "available", VOLUME_S)
    restored = f"{name}-restored"
    openstack.create("volume", "create", "--size", "1", "--type", "pollux", restored)
    openstack.await_volume(restored, "available")
    openstack.run("volume", "backup", "restore", "--force", name, restored)
    openstack.await_status(BACKUP, name, "available", VOLUME_S)
    openstack.await_volume(restored, "available")
    return restored


def test_a_restored_volume_holds_what_was_backed_up(volume: str, openstack: OpenStack, same: Any) -> None:
    assert same(volume, backed_up_and_restored(openstack, f"{PREFIX}-full"))


def test_a_snapshot_is_backed_up_as_it_was(
    cloud: Cloud, volume: str, openstack: OpenStack, same: Any, tmp_path: Path
) -> None:
    snapshot, before = f"{PREFIX}-snapshot", f"{PREFIX}-before"
    openstack.create("volume", "snapshot", "create", "--volume", volume, snapshot)
    openstack.await_status(SNAPSHOT, snapshot, "available", VOLUME_S)
    openstack.create("volume", "create", "--snapshot", snapshot, "--size", "1", "--type", "pollux", before)
    openstack.await_volume(before, "available")
    volume_id = openstack.find(VOLUME, volume)["id"]
    opened = json.loads(polluxd.polluxctl(cloud.context, "data", "open", volume_id, "-f", "json"))
    subprocess.run(["qemu-io", "-f", "raw", "-c", "write -P 0x5a 900M 1M", opened["url"]], check=True, timeout=60)
    polluxd.polluxctl(cloud.context, "data", "close", opened["socket_id"])
    restored = backed_up_and_restored(openstack, f"{PREFIX}-of-snapshot", "--snapshot", snapshot)
    assert same(before, restored)
    assert not same(volume, restored)


def test_a_volume_that_a_guest_uses_is_backed_up(volume: str, openstack: OpenStack, same: Any) -> None:
    server, boot = f"{PREFIX}-server", f"{PREFIX}-boot"
    openstack.create("volume", "create", "--image", PREFIX, "--size", "1", "--type", "pollux", boot)
    openstack.await_volume(boot, "available")
    openstack.create("server", "create", "--flavor", PREFIX, "--volume", boot, "--nic", "none", server)
    try:
        openstack.await_status(SERVER, server, "active", SERVER_S)
        openstack.await_console(server, "^@@POLLUX-BOOTED ")
        openstack.run("server", "add", "volume", server, volume)
        serial = guest_serial(openstack.find(VOLUME, volume)["id"], "scsi")
        # The guest reads it, and writes to disks of zeros alone.
        openstack.await_console(server, rf"^@@DISK-ADDED dev=\S+ .*serial={serial} sha256=\S+$")
        assert openstack.find(VOLUME, volume)["status"] == "in-use"
        restored = backed_up_and_restored(openstack, f"{PREFIX}-in-use", "--force")
        assert openstack.find(VOLUME, volume)["status"] == "in-use"
        assert same(volume, restored)
    finally:
        openstack.run("server", "delete", "--wait", server)
    openstack.await_volume(volume, "available")
