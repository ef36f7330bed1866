"""Images to volumes and back."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pollux_testing import MIB

from python.services import GIB, POOL, Service

pytest.importorskip("cinder")

from cinder import exception
from cinder.message import api as message_api
from cinder.message import message_field
from oslo_config import cfg

from python.volumes.helpers import (
    Images,
    Messages,
    a_volume,
    holds,
    make_driver,
    random_file,
    same_bytes,
    write_to,
)

SMALL_POOL = "small"


@pytest.mark.parametrize("disk_format", ["raw", "qcow2"])
def test_an_image_comes_back_byte_for_byte(
    driver: Any, service: Service, context: Any, images: Images, volume: Any, tmp_path: Path, disk_format: str
) -> None:
    raw = random_file(tmp_path / "raw", 5 * MIB + 512)
    with raw.open("ab") as file:
        file.truncate(9 * MIB)
    stored = raw
    if disk_format != "raw":
        stored = tmp_path / "stored"
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", disk_format, str(raw), str(stored)], check=True)
    driver.copy_image_to_volume(context, volume, images, images.add(stored, disk_format))

    assert holds(service, volume.id, raw)

    uploaded = images.add(None, disk_format)
    driver.copy_volume_to_image(context, volume, images, images.meta[uploaded])
    assert same_bytes(raw, "raw", images.path(uploaded), disk_format)
    if disk_format == "raw":
        assert images.path(uploaded).stat().st_size == GIB
    assert not [one for one in service.client().volumes(POOL) if one.name.startswith("tmp-")]


@pytest.mark.parametrize("disk_format", ["raw", "qcow2"])
def test_a_compressed_image_comes_back_byte_for_byte(
    driver: Any, service: Service, context: Any, images: Images, volume: Any, tmp_path: Path, disk_format: str
) -> None:
    raw, stored = random_file(tmp_path / "raw", 3 * MIB), tmp_path / "stored"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", disk_format, str(raw), str(stored)], check=True)
    subprocess.run(["gzip", str(stored)], check=True)
    image_id = images.add(tmp_path / "stored.gz", disk_format, container_format="compressed")
    driver.copy_image_to_volume(context, volume, images, image_id)
    assert holds(service, volume.id, raw)

    uploaded = images.add(None, disk_format, container_format="compressed")
    driver.copy_volume_to_image(context, volume, images, images.meta[uploaded])
    packed = images.path(uploaded)
    assert packed.stat().st_size < 64 * MIB
    with gzip.open(packed) as source, (tmp_path / "back").open("wb") as target:
        shutil.copyfileobj(source, target)
    assert same_bytes(raw, "raw", tmp_path / "back", disk_format)


def test_a_compressed_image_that_is_none_or_not_wanted_is_refused(
    driver: Any, service: Service, context: Any, images: Images, volume: Any, tmp_path: Path
) -> None:
    plain, cut = random_file(tmp_path / "plain", MIB), tmp_path / "cut"
    cut.write_bytes(gzip.compress(plain.read_bytes())[:MIB // 2])
    for content, reason in ((plain, "not compressed by gzip"), (cut, "cannot be decompressed")):
        image_id = images.add(content, "raw", container_format="compressed")
        with pytest.raises(exception.ImageUnacceptable, match=reason):
            driver.copy_image_to_volume(context, volume, images, image_id)
    cfg.CONF.set_override("allow_compression_on_image_upload", False)
    with pytest.raises(exception.ImageUnacceptable, match="allow_compression_on_image_upload"):
        driver.copy_image_to_volume(context, volume, images, image_id)
    cfg.CONF.set_override("allow_compression_on_image_upload", True)
    assert service.client().volume_describe(volume.id).mapped_bytes == 0


def test_an_image_over_a_used_volume_leaves_nothing_of_what_was_there(
    driver: Any, service: Service, context: Any, images: Images, volume: Any, tmp_path: Path
) -> None:
    write_to(service, volume.id, random_file(tmp_path / "old", 4 * MIB, 7))
    image = tmp_path / "image"
    with random_file(image, MIB, 8).open("ab") as file:
        file.truncate(4 * MIB)
    driver.copy_image_to_volume(context, volume, images, images.add(image, "raw"), disable_sparse=True)
    assert holds(service, volume.id, image)


def test_an_image_that_does_not_fit_the_pool_fails_as_too_big(
    driver: Any, service: Service, context: Any, images: Images, tmp_path: Path
) -> None:
    service.create_pool(SMALL_POOL, 64 * MIB)
    made = a_volume(context, pool=SMALL_POOL)
    driver.create_volume(made)
    image_id = images.add(random_file(tmp_path / "big", 96 * MIB), "raw")
    with pytest.raises(exception.ImageTooBig, match="full"):
        driver.copy_image_to_volume(context, made, images, image_id)
    driver.delete_volume(made)
    service.client().pool_export(SMALL_POOL)


def test_an_image_that_is_larger_than_the_volume_is_refused(
    driver: Any, context: Any, images: Images, volume: Any, tmp_path: Path
) -> None:
    image = tmp_path / "huge"
    with image.open("wb") as file:
        file.truncate(2 * GIB)
    qcow2 = tmp_path / "huge.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(image), str(qcow2)], check=True)
    with pytest.raises(exception.ImageUnacceptable, match="fit"):
        driver.copy_image_to_volume(context, volume, images, images.add(qcow2, "qcow2"))


def test_an_image_with_a_backing_file_is_refused(
    driver: Any, service: Service, context: Any, images: Images, volume: Any, tmp_path: Path
) -> None:
    secret = random_file(tmp_path / "secret", MIB)
    overlay = tmp_path / "overlay"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(secret), str(overlay)], check=True
    )
    with pytest.raises(exception.CinderException):
        driver.copy_image_to_volume(context, volume, images, images.add(overlay, "qcow2"))
    assert service.client().volume_describe(volume.id).mapped_bytes == 0


def test_a_copy_that_the_service_does_not_survive_fails_and_the_user_is_told(
    own_service: Service, context: Any, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = Messages()
    monkeypatch.setattr(message_api, "API", lambda: messages)
    driver = make_driver(own_service, pollux_connect_ms=500)
    made = a_volume(context)
    driver.create_volume(made)
    images.on_download = own_service.polluxd.kill
    with pytest.raises(exception.CinderException):
        driver.copy_image_to_volume(context, made, images, images.add(random_file(tmp_path / "i", MIB), "raw"))
    assert messages.made == [
        (message_field.Action.COPY_IMAGE_TO_VOLUME, message_field.Detail.DRIVER_FAILED_CREATE, made.id)
    ]
