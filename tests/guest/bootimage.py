"""Builds the bootable test image: GPT, grub for BIOS and UEFI, ext4 root with kernel and busybox.

Nothing is mounted and no loop device is used: the file systems are made in files of their own
(``mke2fs -d``, mtools) and laid into the image. What the guest then does is in ``files/boot-init`` and
``files/watch-disks``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from guest import initramfs, kernels

_SECTOR = 512
_MIB = 1 << 20
# The partitions, in MiB: grub's own, the EFI system partition, and the root up to the end.
_GRUB_AT, _GRUB_SIZE = 1, 1
_ESP_AT, _ESP_SIZE = 2, 4
_ROOT_AT = _ESP_AT + _ESP_SIZE
_BACKUP_GPT_SIZE = 1
_SMALLEST_MB = 48
_GRUB_MODULES = ("part_gpt", "ext2", "normal", "linux", "configfile", "serial", "terminal")


def build(out: Path, size_mb: int) -> None:
    """Write the image to `out`, replacing it. Raises CalledProcessError when a tool fails."""
    if size_mb < _SMALLEST_MB:
        raise ValueError(f"the image needs at least {_SMALLEST_MB} MB")
    with tempfile.TemporaryDirectory(prefix="pollux-image-") as scratch_name:
        scratch = Path(scratch_name)
        image = scratch / "image"
        image.touch()
        os.truncate(image, size_mb * _MIB)
        root_mb = size_mb - _ROOT_AT - _BACKUP_GPT_SIZE
        _partition(image, root_mb)
        _copy_into(image, _ROOT_AT * _MIB, _root_file_system(scratch, root_mb))
        _copy_into(image, _ESP_AT * _MIB, _efi_file_system(scratch))
        _install_bios_grub(image, _grub_image(scratch, "i386-pc", ("biosdisk",)))
        # shutil.move keeps holes only within one file system; cp keeps them across two.
        _run("cp", "--sparse=always", str(image), str(out))


def _partition(image: Path, root_mb: int) -> None:
    _run(
        *("sgdisk", "--set-alignment=2048"),
        *("-n", f"1:{_GRUB_AT}M:+{_GRUB_SIZE}M", "-t", "1:EF02"),
        *("-n", f"2:{_ESP_AT}M:+{_ESP_SIZE}M", "-t", "2:EF00"),
        *("-n", f"3:{_ROOT_AT}M:+{root_mb}M", "-t", "3:8300"),
        str(image),
    )


def _root_file_system(scratch: Path, size_mb: int) -> Path:
    kernel = kernels.cloud()
    tree = scratch / "root"
    for folder in ("bin", "boot/grub", "dev", "etc", "lib", "proc", "sbin", "sys", "tmp", "var"):
        (tree / folder).mkdir(parents=True)
    shutil.copyfile(kernel.image, tree / "boot/vmlinuz")
    shutil.copyfile(initramfs.base_image(kernel, "boot-initramfs-init"), tree / "boot/initrd")
    shutil.copyfile(initramfs.FILES / "grub.cfg", tree / "boot/grub/grub.cfg")
    shutil.copyfile(initramfs.FILES / "guest.sh", tree / "lib/guest.sh")
    _install(initramfs.FILES / "boot-init", tree / "sbin/init")
    _install(initramfs.FILES / "watch-disks", tree / "sbin/watch-disks")
    _install(kernels.busybox(), tree / "bin/busybox")
    applets = subprocess.run([kernels.busybox(), "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        if applet not in ("busybox", "init"):
            (tree / "bin" / applet).symlink_to("busybox")
    made = scratch / "root.ext4"
    _run(
        "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-L",
        "pollux-guest",
        "-d",
        str(tree),
        str(made),
        f"{size_mb}M",
    )
    return made


def _efi_file_system(scratch: Path) -> Path:
    loader = _grub_image(scratch, "x86_64-efi", ("fat",))
    made = scratch / "esp"
    made.touch()
    os.truncate(made, _ESP_SIZE * _MIB)
    _run("mkfs.vfat", "-n", "ESP", str(made))
    _run("mmd", "-i", str(made), "::/EFI", "::/EFI/BOOT")
    _run("mcopy", "-i", str(made), str(loader), "::/EFI/BOOT/BOOTX64.EFI")
    return made


def _grub_image(scratch: Path, target: str, modules: tuple[str, ...]) -> Path:
    """grub's core for `target`. It reads its files from the third partition of the disk it is on."""
    made = scratch / f"grub-{target}"
    _run(
        *("grub-mkimage", "-O", target, "-p", "(,gpt3)/boot/grub", "-o", str(made)),
        *(*modules, *_GRUB_MODULES),
    )
    return made


def _install_bios_grub(image: Path, core_image: Path) -> None:
    """Put grub's boot sector and core where grub-install would, which needs a block device.

    The boot sector (grub-core/boot/i386/pc/boot.S) loads the first sector of the core from the LBA at
    0x5c. That first sector (diskboot.S) loads the rest from the block list at its end: a start LBA at
    0x1f4 and a count of sectors at 0x1fc.
    """
    boot_sector = Path("/usr/lib/grub/i386-pc/boot.img").read_bytes()
    core = bytearray(core_image.read_bytes())
    core += bytes(-len(core) % _SECTOR)
    if len(core) > _GRUB_SIZE * _MIB:
        raise ValueError("grub's core does not fit its partition")
    core_lba = _GRUB_AT * _MIB // _SECTOR
    struct.pack_into("<Q", core, 0x1F4, core_lba + 1)
    struct.pack_into("<H", core, 0x1FC, len(core) // _SECTOR - 1)
    with open(image, "r+b") as disk:
        sector = bytearray(disk.read(_SECTOR))
        sector[:440] = boot_sector[:440]  # the partition table follows
        struct.pack_into("<Q", sector, 0x5C, core_lba)
        # At 0x66 boot.S jumps over the check that distrusts the BIOS's drive number; two no-ops keep it.
        sector[0x66:0x68] = b"\x90\x90"
        disk.seek(0)
        disk.write(sector)
        disk.seek(core_lba * _SECTOR)
        disk.write(core)


def _copy_into(image: Path, offset: int, part: Path) -> None:
    _run(
        *("dd", f"if={part}", f"of={image}", "bs=1M", f"seek={offset}", "oflag=seek_bytes"),
        *("conv=notrunc,sparse", "status=none"),
    )


def _install(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    target.chmod(0o755)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.stderr.write(done.stdout + done.stderr)
        done.check_returncode()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="mkbootimage",
        description="Write a raw disk image that boots by BIOS and UEFI and reports its disks on ttyS0.",
    )
    parser.add_argument("out", type=Path, metavar="OUT.raw")
    parser.add_argument("--size-mb", type=int, default=64, help="size of the image (default: 64)")
    arguments = parser.parse_args()
    try:
        build(arguments.out, arguments.size_mb)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"mkbootimage: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.out}: {arguments.size_mb} MB, kernel {kernels.cloud().version}")
    return 0
