"""Volumes, images and attachments as the driver meets them, without Cinder's own services."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pollux import nbd

from python.services import COMPUTE_HOST, POOL, Service, new_id

pytest.importorskip("cinder")

from cinder import objects
from cinder.objects import fields
from cinder.volume import configuration
from cinder.volume import driver as cinder_driver
from oslo_config import cfg
from oslo_utils import importutils

CONNECTOR = {"host": "nova-name-of-host", "pollux_host": COMPUTE_HOST}


class Images:
    """Glance, as far as the driver sees it: images are files."""

    temp_images = None

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.meta: dict[str, dict[str, Any]] = {}
        self.on_download: Callable[[], None] = lambda: None

    def add(self, content: Path | None, disk_format: str, **meta: Any) -> str:
        image_id = new_id()
        self.meta[image_id] = {"id": image_id, "disk_format": disk_format, "container_format": "bare", **meta}
        if content:
            self.path(image_id).write_bytes(content.read_bytes())
            self.meta[image_id]["size"] = content.stat().st_size
        return image_id

    def path(self, image_id: str) -> Path:
        return self._folder / image_id

    def show(self, context: Any, image_id: str) -> dict[str, Any]:
        return self.meta[image_id]

    def download(self, context: Any, image_id: str, data: Any) -> None:
        data.write(self.path(image_id).read_bytes())
        self.on_download()

    def update(self, context: Any, image_id: str, meta: dict[str, Any], data: Any = None, **options: Any) -> None:
        with self.path(image_id).open("wb") as file:
            while part := data.read(1 << 20):
                file.write(part)


class Messages:
    """Cinder's user messages, kept instead of stored in a database."""

    def __init__(self) -> None:
        self.made: list[tuple[Any, Any, str]] = []

    def create(self, context: Any, action: Any, resource_uuid: str, detail: Any) -> None:
        self.made.append((action, detail, resource_uuid))


def section_of(service: Service) -> dict[str, str]:
    """The options of a back end by which its driver reaches the service."""
    settings = service.settings("cinder")
    return {
        "pollux_address": settings.address,
        "pollux_ca": str(settings.ca),
        "pollux_certificate": str(settings.certificate),
        "pollux_key": str(settings.key),
    }


def make_driver(service: Service, **options: Any) -> Any:
    conf = configuration.Configuration(cinder_driver.volume_opts, config_group=f"pollux-{new_id()}")
    made = importutils.import_object("pollux.cinder.driver.PolluxDriver", configuration=conf, host="h@pollux")
    given = {**section_of(service), **options}
    for name, value in given.items():
        cfg.CONF.set_override(name, value, group=conf.config_group)
    made.do_setup(None)
    return made


def a_volume(
    context: Any,
    *,
    size: int = 1,
    pool: str = POOL,
    specs: dict[str, str] | None = None,
    qos: str | None = None,
    **more: Any,
) -> Any:
    values: dict[str, Any] = {
        "id": new_id(),
        "_name_id": None,
        "host": f"h@pollux#{pool}",
        "size": size,
        "status": "creating",
        "encryption_key_id": None,
        "volume_type_id": None,
        "multiattach": False,
        "volume_attachment": objects.VolumeAttachmentList(objects=[]),
        "glance_metadata": {},
        **more,
    }
    # Uploading looks at the type of every volume.
    kind = objects.VolumeType(id=new_id(), extra_specs=specs or {}, qos_specs_id=qos)
    return objects.Volume(context, **{**values, "volume_type_id": kind.id, "volume_type": kind})


def a_snapshot(context: Any, volume: Any) -> Any:
    return objects.Snapshot(context, id=new_id(), volume=volume, volume_id=volume.id, volume_size=volume.size)


def an_attachment(context: Any, volume: Any, connector: dict[str, str]) -> Any:
    return objects.VolumeAttachment(
        context,
        id=new_id(),
        volume_id=volume.id,
        connector=connector,
        attach_status=fields.VolumeAttachStatus.ATTACHED,
    )


def random_file(path: Path, size_bytes: int, seed: int = 1) -> Path:
    path.write_bytes(random.Random(seed).randbytes(size_bytes))
    return path


def holds(service: Service, volume_id: str, content: Path) -> bool:
    """Whether a volume or snapshot holds `content`, and zeros behind it. Read without the driver."""
    with nbd.open_volume(service.client("admin"), volume_id, read_only=True) as url:
        return same_bytes(content, "raw", url, "raw")


def same_bytes(one: Path | str, one_format: str, other: Path | str, other_format: str) -> bool:
    """Whether two images have the same bytes; one that is longer has zeros there."""
    done = subprocess.run(
        ["qemu-img", "compare", "-f", one_format, "-F", other_format, str(one), str(other)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0


def write_to(service: Service, volume_id: str, content: Path) -> None:
    with nbd.open_volume(service.client("admin"), volume_id, read_only=False) as url:
        command = ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(content), url]
        subprocess.run(command, check=True, timeout=300)


def hosts(service: Service, volume: Any) -> list[str]:
    return [one.host for one in service.client().authorisation_list(volume.id)]


def attach_as_cinder_does(driver: Any, context: Any, volume: Any, connector: dict[str, Any]) -> Any:
    """The attachment, with the connector as Cinder stores it once the driver has had it."""
    attachment = an_attachment(context, volume, {})
    volume.volume_attachment.objects.append(attachment)
    given = dict(connector)
    driver.initialize_connection(volume, given)
    attachment.connector = json.loads(json.dumps(given))
    return attachment

