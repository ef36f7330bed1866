"""What a user does with volumes besides the demo, through the ordinary command."""

from __future__ import annotations

import gzip
import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from allinone import cinder, guest_image, identity, nova, polluxd, wait
from allinone.cloud import Cloud
from allinone.openstack import SERVER_S, VOLUME_S, OpenStack

VOLUME, SERVER = ("volume",), ("server",)
PREFIX = "pollux-volumes"
POOL = "pool2"
#: A deadline: the scheduler hears of a new pool within some seconds.
POOL_S = 240


@pytest.fixture(scope="module")
def plain(cloud: Cloud, openstack: OpenStack) -> Iterator[str]:
    """A volume made from an image; everything that is named after it goes with it."""
    image = guest_image.path(cloud.settings)
    openstack.create("image", "create", "--disk-format", "raw", "--container-format", "bare", "--file", str(image),
                     PREFIX)
    openstack.create("volume", "create", "--image", PREFIX, "--size", "1", "--type", "pollux", PREFIX)
    openstack.await_volume(PREFIX, "available")
    yield PREFIX
    for kind in (VOLUME, ("image",)):
        listed = openstack.quiet(*kind, "list", "-f", "value", "-c", "Name").splitlines()
        for name in sorted(one for one in listed if one.startswith(PREFIX)):
            openstack.run(*kind, "delete", name)
            if kind == VOLUME:
                openstack.await_gone(kind, name)


def upload(cloud: Cloud, path: Path, name: str) -> None:
    """Make a compressed image, which the command cannot."""
    context = cloud.context
    token, _ = identity.login(context.keystone_url, "admin", context.secrets["admin"], "admin")
    url = context.settings.url(context.settings.ports.glance, "/v2/images")
    image = identity.Api(url, token).post("", {"name": name, "disk_format": "raw", "container_format": "compressed"})
    headers = {"X-Auth-Token": token, "Content-Type": "application/octet-stream", "Transfer-Encoding": "chunked"}
    with path.open("rb") as content:
        # Glance under uwsgi takes chunks alone, and none of a MiB.
        request = urllib.request.Request(f"{url}/{image['id']}/file", data=iter(lambda: content.read(1 << 16), b""),
                                         headers=headers, method="PUT")
        urllib.request.urlopen(request, timeout=600).close()


def test_a_volume_from_a_compressed_image_is_that_of_the_image(
    cloud: Cloud, openstack: OpenStack, plain: str, same: Any, tmp_path: Path
) -> None:
    packed, name = tmp_path / "boot.raw.gz", f"{PREFIX}-compressed"
    with guest_image.path(cloud.settings).open("rb") as source, gzip.open(packed, "wb", compresslevel=1) as target:
        shutil.copyfileobj(source, target)
    upload(cloud, packed, name)
    openstack.create("volume", "create", "--image", name, "--size", "1", "--type", "pollux", name)
    openstack.await_volume(name, "available")
    assert same(plain, name)


@pytest.fixture
def there(cloud: Cloud) -> Iterator[str]:
    """Another pool of the back end, as Cinder names it."""
    context = cloud.context
    file = cloud.settings.data / "polluxd" / f"{POOL}.img"
    polluxd.polluxctl(context, "pool", "create", POOL, "--file", str(file), "--size", "2G")
    try:
        name = f"{cloud.settings.host}@{cinder.BACKEND}#{POOL}"
        api = cinder.volume_api(context)
        wait.until("the scheduler knows the pool", lambda: name in str(api.get("/scheduler-stats/get_pools")), POOL_S)
        yield name
    finally:
        polluxd.polluxctl(context, "pool", "export", POOL)
        file.unlink()


def pool_of(cloud: Cloud, volume_id: str) -> str:
    return str(json.loads(polluxd.polluxctl(cloud.context, "volume", "show", volume_id, "-f", "json"))["pool"])


def test_a_volume_that_moves_to_another_pool_keeps_its_id(
    cloud: Cloud, openstack: OpenStack, plain: str, same: Any, there: str
) -> None:
    name = f"{PREFIX}-moving"
    openstack.create("volume", "create", "--source", plain, "--size", "1", "--type", "pollux", name)
    volume_id = str(openstack.await_volume(name, "available")["id"])
    openstack.run("volume", "migrate", "--host", there, name)

    def moved() -> bool:
        found = openstack.find(VOLUME, name)
        assert found
        assert found["migration_status"] != "error"
        return bool(found["migration_status"] == "success" and found["os-vol-host-attr:host"] == there)

    wait.until("the volume has moved", moved, VOLUME_S, 2.0)
    assert pool_of(cloud, volume_id) == POOL
    assert (openstack.find(VOLUME, name) or {})["os-vol-mig-status-attr:name_id"] is None
    assert same(plain, name)
    openstack.run("volume", "delete", name)
    openstack.await_gone(VOLUME, name)


@pytest.fixture
def server(openstack: OpenStack) -> Iterator[str]:
    """A running server whose disk is the volume of the same name."""
    name = f"{PREFIX}-in-use"
    openstack.create("flavor", "create", "--ram", "128", "--disk", "0", "--vcpus", "1", name)
    try:
        openstack.create("volume", "create", "--size", "1", "--type", "pollux", "--bootable", name)
        openstack.await_volume(name, "available")
        openstack.create("server", "create", "--flavor", name, "--volume", name, "--nic", "none", name)
        openstack.await_status(SERVER, name, "active", SERVER_S)
        yield name
    finally:
        if openstack.exists(SERVER, name):
            openstack.run("server", "delete", name)
            openstack.await_gone(SERVER, name)
        if openstack.exists(VOLUME, name):
            openstack.run("volume", "delete", name)
            openstack.await_gone(VOLUME, name)
        openstack.run("flavor", "delete", name)


def test_a_volume_in_use_that_is_to_move_stays_where_it_is_under_its_id(
    cloud: Cloud, openstack: OpenStack, server: str, there: str
) -> None:
    before = openstack.await_volume(server, "in-use")
    openstack.run("volume", "migrate", "--host", there, server)

    def refused() -> dict[str, Any] | None:
        found = openstack.find(VOLUME, server)
        assert found
        assert found["migration_status"] != "success"
        return found if found["migration_status"] == "error" else None

    after = wait.until("the migration has failed", refused, VOLUME_S, 2.0)
    for key in ("id", "status", "os-vol-host-attr:host", "os-vol-mig-status-attr:name_id"):
        assert after[key] == before[key], key
    assert [one["server_id"] for one in after["attachments"]] == [one["server_id"] for one in before["attachments"]]
    assert pool_of(cloud, str(before["id"])) == cloud.settings.pool_name
    assert "cannot be exchanged while a server uses it" in cloud.processes.log(nova.COMPUTE).read_text()
    # What Cinder made to copy to is gone again.
    wait.until("the other pool is empty", lambda: not json.loads(polluxd.polluxctl(
        cloud.context, "volume", "list", POOL, "-f", "json")), VOLUME_S, 1.0)
