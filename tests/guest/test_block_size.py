"""Volumes on a device whose blocks are of 4096 bytes: guests get blocks of 512 unless they are to have others."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
from pollux_testing import MIB, POOL, Polluxd, disk_of

from guest.qemu import QemuBoot
from guest.uml import Uml

_BOOT_S = 60
_SMALL_BLOCKS = "small-blocks"


@pytest.fixture
def polluxd_4096(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Polluxd]:
    """A polluxd whose pool is on a device of 4096-byte blocks, and another pool in an ordinary file."""
    logs = Path(os.environ.get("POLLUX_TEST_LOGS", str(tmp_path)))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pollux-")))
        image = folder / "device.img"
        with image.open("wb") as made:
            made.truncate(512 * MIB)
        device = _run("losetup", "--sector-size", "4096", "--find", "--show", str(image)).strip()
        stack.callback(_run, "losetup", "--detach", device)
        service = Polluxd(folder, logs / f"polluxd-{request.node.name}.log")
        stack.callback(service.close)
        service.start()
        service.create_pool(device=Path(device))
        service.create_pool(_SMALL_BLOCKS)
        yield service


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def _io(url: str, *commands: str) -> None:
    flags = [flag for command in commands for flag in ("-c", command)]
    said = _run("qemu-io", "-f", "raw", "-t", "none", *flags, url)
    # It exits with 0 when a pattern does not match.
    assert "failed" not in said, said


@pytest.mark.parametrize("transport", ["scsi", "blk"])
@pytest.mark.parametrize("firmware", ["bios", pytest.param("uefi", marks=pytest.mark.full)])
def test_an_image_of_512_byte_blocks_boots(
    polluxd_4096: Polluxd, boot_image: Path, firmware: str, transport: str
) -> None:
    polluxd = polluxd_4096
    volume = polluxd.create_volume(64 * MIB)
    assert volume.block_bytes == 512
    polluxd.write_image(volume.volume_id, boot_image)
    attachment = polluxd.attach(volume.volume_id, transport)
    for boots in (1, 2):
        with QemuBoot([disk_of(attachment, boot=True)], firmware=firmware) as guest:
            guest.wait(f"@@POLLUX-BOOTED .* boots={boots} fw={firmware} ", _BOOT_S)
            guest.power_button()
            guest.wait("@@POLLUX-POWEROFF")
            guest.wait_end()


@pytest.mark.parametrize("transport", ["scsi", "blk"])
def test_a_guest_sees_the_blocks_that_the_volume_has(polluxd_4096: Polluxd, transport: str) -> None:
    polluxd = polluxd_4096
    script = """
        . /lib/guest.sh
        wait_for_disks 1 || exit 1
        dev=$(disks)
        for kind in logical physical; do mark "BLOCKS $kind $(cat /sys/block/$dev/queue/${kind}_block_size)"; done
        bytes=$(cat /sys/block/$dev/queue/logical_block_size)
        # Blocks by themselves, each across the others' writes.
        for block in 0 1 2 3 9; do
            yes "block $block" | dd of=/dev/$dev bs=$bytes seek=$block count=1 iflag=fullblock oflag=direct || exit 1
        done
        for block in 0 1 2 3 9; do
            dd if=/dev/$dev of=/tmp/block bs=$bytes skip=$block count=1 iflag=direct || exit 1
            grep -q "block $block" /tmp/block || exit 1
        done
    """
    for block_bytes in (512, 4096):
        volume = polluxd.create_volume(16 * MIB, block_bytes=block_bytes)
        assert volume.block_bytes == block_bytes
        with Uml(script, [disk_of(polluxd.attach(volume.volume_id, transport))]) as guest:
            assert guest.wait(r"@@BLOCKS logical (\d+)")[1] == str(block_bytes)
            assert guest.wait(r"@@BLOCKS physical (\d+)")[1] == "4096"
            guest.wait_script()


def test_images_are_copied_between_pools_of_devices_with_different_blocks(
    polluxd_4096: Polluxd, boot_image: Path
) -> None:
    polluxd = polluxd_4096
    volumes = [polluxd.create_volume(64 * MIB, pool=pool) for pool in (_SMALL_BLOCKS, POOL, _SMALL_BLOCKS)]
    polluxd.write_image(volumes[0].volume_id, boot_image)
    # A block by itself, in what the image does not use and in what it does.
    with polluxd.image_of(volumes[0].volume_id, read_only=False) as url:
        _io(url, f"write -P 0x5a {63 * MIB + 512} 512", "write -P 0xa5 1536 512", "flush")
    for source, target in pairwise(volumes):
        with (
            polluxd.image_of(source.volume_id) as origin,
            polluxd.image_of(target.volume_id, read_only=False) as copy,
        ):
            _run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", origin, copy)
            _run("qemu-img", "compare", "-f", "raw", "-F", "raw", origin, copy)
    with polluxd.image_of(volumes[1].volume_id, read_only=False) as url:
        _io(
            url,
            f"read -P 0x5a {63 * MIB + 512} 512",
            f"write -P 0x11 {63 * MIB + 1024} 1536",
            f"write -z {63 * MIB + 1536} 512",
            f"read -P 0x5a {63 * MIB + 512} 512",
            f"read -P 0x11 {63 * MIB + 1024} 512",
            f"read -P 0 {63 * MIB + 1536} 512",
            f"read -P 0x11 {63 * MIB + 2048} 512",
            "read -P 0xa5 1536 512",
        )
