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
from allinone import cinder, guest_image, identity, polluxd, wait
from allinone.cloud import Cloud
from allinone.openstack import VOLUME_S, OpenStack

VOLUME = ("volume",)
PREFIX = "pollux-volumes"
POOL = "pool2"
#: The scheduler hears of a new pool once a minute.
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


def test_a_volume_that_moves_to_another_pool_keeps_its_id(
    cloud: Cloud, openstack: OpenStack, plain: str, same: Any
) -> None:
    context, name = cloud.context, f"{PREFIX}-moving"
    file = cloud.settings.data / "polluxd" / f"{POOL}.img"
    polluxd.polluxctl(context, "pool", "create", POOL, "--file", str(file), "--size", "2G")
    try:
        openstack.create("volume", "create", "--source", plain, "--size", "1", "--type", "pollux", name)
        volume_id = str(openstack.await_volume(name, "available")["id"])
        there = f"{cloud.settings.host}@{cinder.BACKEND}#{POOL}"
        api = cinder.volume_api(context)
        wait.until("the scheduler knows the pool", lambda: there in str(api.get("/scheduler-stats/get_pools")), POOL_S)
        openstack.run("volume", "migrate", "--host", there, name)

        def moved() -> bool:
            found = openstack.find(VOLUME, name)
            assert found
            assert found["migration_status"] != "error"
            return bool(found["migration_status"] == "success" and found["os-vol-host-attr:host"] == there)

        wait.until("the volume has moved", moved, VOLUME_S, 2.0)
        shown = json.loads(polluxd.polluxctl(context, "volume", "show", volume_id, "-f", "json"))
        assert shown["pool"] == POOL
        assert (openstack.find(VOLUME, name) or {})["os-vol-mig-status-attr:name_id"] is None
        assert same(plain, name)
        openstack.run("volume", "delete", name)
        openstack.await_gone(VOLUME, name)
    finally:
        polluxd.polluxctl(context, "pool", "export", POOL)
        file.unlink()
