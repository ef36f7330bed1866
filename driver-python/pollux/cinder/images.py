"""Images to volumes and back. qemu-img reads and writes the service's NBD sockets; no device and no root is needed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from cinder import exception, utils
from cinder.image import accelerator, image_utils
from cinder.volume import volume_utils
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_log import log as logging

CONF = cfg.CONF
LOG = logging.getLogger(__name__)
_FULL = 'No space left on device'


def convert(source: str, source_format: str, target: str, target_format: str, *, into_volume: bool,
            zeroed: bool = False) -> None:
    """Run qemu-img convert. `zeroed`: the target is a volume that reads as zeros all over.

    Raises ProcessExecutionError, with what qemu-img said.
    """
    command = ['qemu-img', 'convert', '-f', source_format, '-O', target_format]
    if into_volume:
        # It exists. Blocks may be written in any order.
        command += ['-n', '-W']
        if zeroed:
            command += ['--target-is-zero']
    utils.execute(*command, source, target, run_as_root=False)


@contextlib.contextmanager
def _fetched(context: Any, image_service: Any, image_id: str) -> Iterator[str]:
    """The image as a local file. Cinder may have fetched it before it calls the driver."""
    there = image_utils.TemporaryImages.for_image_service(image_service).get(context, image_id)
    if there:
        yield there
        return
    with image_utils.temporary_file(prefix=f'pollux_{image_id}_') as path:
        image_utils.fetch(context, image_service, image_id, path, None, None)
        yield path


def _decompress(path: str, image_id: str) -> None:
    """In place, as Cinder's own copies do. Raises ImageUnacceptable."""
    if not accelerator.is_gzip_compressed(path):
        raise exception.ImageUnacceptable(image_id=image_id, reason=(
            'its container_format is compressed, and it is not compressed by gzip'))
    try:
        accelerator.ImageAccel(path, path).decompress_img(run_as_root=False)
    except exception.CinderAcceleratorError as error:
        raise exception.ImageUnacceptable(image_id=image_id, reason=f'it cannot be decompressed: {error}') from error


def image_to_volume(context: Any, image_service: Any, image_id: str,
                    open_target: Callable[[], contextlib.AbstractContextManager[str]], volume_size_gib: int, *,
                    zeroed: bool) -> None:
    """Write an image into a volume, whose NBD URL `open_target` gives. It is opened once the image is here: fetching
    may take long, and a socket that is not used does not stay.

    Raises ImageUnacceptable, ImageConversionNotAllowed, ImageTooBig (the pool is full) or ImageCopyFailure.
    """
    image = image_service.show(context, image_id)
    image_utils.check_image_conversion_disable(image['disk_format'], 'raw', image_id, upload=False)
    compressed = image.get('container_format') == 'compressed'
    if compressed and not CONF.allow_compression_on_image_upload:
        raise exception.ImageUnacceptable(image_id=image_id, reason=(
            'its container_format is compressed, and allow_compression_on_image_upload is off in cinder.conf'))
    with _fetched(context, image_service, image_id) as path:
        if compressed:
            _decompress(path, image_id)
        data = image_utils.qemu_img_info(path, run_as_root=False)
        image_utils.check_image_format(path, image_utils.fixup_disk_format(image['disk_format']), image_id, data,
                                       run_as_root=False)
        if data.backing_file is not None:
            raise exception.ImageUnacceptable(image_id=image_id, reason=f'it is backed by {data.backing_file}')
        image_utils.check_virtual_size(data.virtual_size, volume_size_gib, image_id)
        try:
            with open_target() as target:
                convert(path, data.file_format, target, 'raw', into_volume=True, zeroed=zeroed)
        except processutils.ProcessExecutionError as error:
            said = (error.stderr or str(error)).strip()
            LOG.error('Image %s was not written to the volume: %s', image_id, said)
            if _FULL in said:
                raise exception.ImageTooBig(image_id=image_id, reason='the pool of the volume is full') from error
            raise exception.ImageCopyFailure(reason=said) from error


def volume_to_image(context: Any, source: str, volume: Any, image_service: Any, image: dict[str, Any]) -> None:
    """Upload what is behind the NBD URL `source` as an image. Raises ImageConversionNotAllowed or
    VolumeBackendAPIException."""
    wanted = image['disk_format']
    image_utils.check_image_conversion_disable(wanted, 'raw', image['id'], upload=True)
    # Cinder compresses what it uploads by itself, from raw.
    format_name = 'raw' if image.get('container_format') == 'compressed' else wanted
    with image_utils.temporary_file(prefix=f'pollux_upload_{image["id"]}_') as path:
        try:
            convert(source, 'raw', path, image_utils.fixup_disk_format(format_name), into_volume=False)
        except processutils.ProcessExecutionError as error:
            said = (error.stderr or str(error)).strip()
            raise exception.VolumeBackendAPIException(
                data=f'image {image["id"]}: the volume was not read: {said}') from error
        volume_utils.upload_volume(context, image_service, image, path, volume, volume_format=format_name,
                                   run_as_root=False)
