"""The kernels that guests run, and the modules that a guest needs of them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from guest import packages


@dataclass(frozen=True)
class Kernel:
    """A kernel image with its modules.

    `root` is the folder that holds ``lib/modules/<version>``; `wanted` are the modules that a guest
    loads at boot, in this order, those that the kernel has built in left out.
    """

    image: Path
    root: Path
    version: str
    wanted: tuple[str, ...]

    @property
    def module_dir(self) -> Path:
        return self.root / "lib" / "modules" / self.version

    def module_files(self) -> list[Path]:
        """The files of the wanted modules and of all that they depend on."""
        files: dict[Path, None] = {}
        for module in self.wanted:
            listed = subprocess.run(
                ["modprobe", "-d", str(self.root), "-S", self.version, "--show-depends", module],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for line in listed.splitlines():
                verb, _, path = line.partition(" ")
                if verb == "insmod":
                    files[Path(path.split()[0])] = None
        return list(files)


@cache
def uml() -> Kernel:
    """User-mode Linux: a kernel that is a host process."""
    root = packages.unpacked("user-mode-linux")
    (versioned,) = (root / "usr/lib/uml/modules").iterdir()
    # The package keeps its modules where kmod does not look; a link gives kmod the layout it expects.
    layout = root / "lib" / "modules"
    layout.mkdir(parents=True, exist_ok=True)
    link = layout / versioned.name
    if not link.exists():
        link.symlink_to(f"../../usr/lib/uml/modules/{versioned.name}")
    wanted = ("virtio_blk", "sd_mod", "sg", "virtio_scsi")
    return _prepared(Kernel(root / "usr/bin/linux.uml", root, versioned.name, wanted))


@cache
def cloud(*more: str) -> Kernel:
    """Debian's kernel for virtual machines, for QEMU; `more` modules are loaded last."""
    name = packages.dependency("linux-image-cloud-amd64", "linux-image-6*-cloud-amd64")
    root = packages.unpacked(name)
    version = name.removeprefix("linux-image-")
    wanted = (
        "button",
        "evdev",
        "crc32c-intel",
        "virtio_pci",
        "virtio_blk",
        "sd_mod",
        "sg",
        "virtio_scsi",
        "ext4",
        *more,
    )
    return _prepared(Kernel(root / "boot" / f"vmlinuz-{version}", root, version, wanted))


@cache
def busybox() -> Path:
    """A statically linked busybox, the whole userland of the guests."""
    return packages.unpacked("busybox-static") / "bin" / "busybox"


def _prepared(kernel: Kernel) -> Kernel:
    if not (kernel.module_dir / "modules.dep.bin").exists():
        with packages.cache_lock("depmod"):
            subprocess.run(["depmod", "-b", str(kernel.root), kernel.version], check=True)
    return kernel
