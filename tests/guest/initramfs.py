"""The initramfs of the guests that boot a kernel directly: busybox, modules, and the test's script.

The part that does not change from test to test is built once a kernel and kept in the test cache. The
script follows it as a second archive: the kernel unpacks archives that follow one another into one
tree, and skips zero bytes between them.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from guest import kernels, packages
from guest.cpio import Archive

FILES = Path(__file__).parent / "files"


def with_script(
    kernel: kernels.Kernel, script: str, variables: Mapping[str, str], programs: Sequence[str] = ()
) -> bytes:
    """An initramfs for `kernel` that runs `script` in a shell with `variables` set.

    `programs` of this machine, names or paths, are in /bin of the guest, with the libraries that they need.
    """
    prelude = "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())
    archive = Archive()
    archive.file("script", (prelude + script).encode(), 0o755)
    for path, source in _files_of(programs).items():
        archive.file(str(path), source.read_bytes(), 0o755)
    base = base_image(kernel, "initramfs-init").read_bytes()
    # An uncompressed archive must begin at a multiple of four bytes.
    return base + bytes(-len(base) % 4) + archive.finish()


def _files_of(programs: Sequence[str]) -> dict[PurePosixPath, Path]:
    """Where in a guest the programs and their libraries go, and where they are here."""
    files: dict[PurePosixPath, Path] = {}
    for name in programs:
        program = shutil.which(name)
        if program is None:
            raise FileNotFoundError(f"{name} is not installed; tests/packages.txt has the package")
        files[PurePosixPath("bin") / Path(name).name] = Path(program)
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        # "libx.so.1 => /lib/libx.so.1 (0x...)", and the loader without an arrow.
        for library in re.findall(r"(/\S+) \(0x", listed):
            files[PurePosixPath(library.lstrip("/"))] = Path(library).resolve()
    return files


def base_image(kernel: kernels.Kernel, init: str) -> Path:
    """The compressed archive with ``files/<init>`` as its /init; built when the cache lacks it."""
    content = _base_archive(kernel, init)
    name = f"initramfs-{kernel.version}-{hashlib.sha256(content).hexdigest()[:16]}.gz"
    path = packages.cache_dir() / name
    if not path.exists():
        # mtime=0: the same content gives the same file.
        packed = gzip.compress(content, compresslevel=6, mtime=0)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as scratch:
            scratch.write(packed)
        os.rename(scratch.name, path)
    return path


def _base_archive(kernel: kernels.Kernel, init: str) -> bytes:
    archive = Archive()
    archive.file("init", (FILES / init).read_bytes(), 0o755)
    archive.file("lib/guest.sh", (FILES / "guest.sh").read_bytes())
    archive.file("bin/busybox", kernels.busybox().read_bytes(), 0o755)
    archive.file("etc/modules", "\n".join(kernel.wanted).encode() + b"\n")
    for folder in ("dev", "proc", "sys", "tmp", "mnt", "etc"):
        archive.folder(folder)
    module_root = f"lib/modules/{kernel.version}"
    shipped: list[str] = []
    for path in kernel.module_files():
        relative = str(path.relative_to(kernel.module_dir))
        shipped.append(relative)
        archive.file(f"{module_root}/{relative}", path.read_bytes())
    archive.file(f"{module_root}/modules.dep", _dependencies_of(kernel, shipped))
    archive.file(f"{module_root}/modules.builtin", (kernel.module_dir / "modules.builtin").read_bytes())
    return archive.finish()


def _dependencies_of(kernel: kernels.Kernel, shipped: list[str]) -> bytes:
    """The lines of modules.dep that concern the modules in the archive; busybox reads no other."""
    wanted = set(shipped)
    lines = (kernel.module_dir / "modules.dep").read_text().splitlines(keepends=True)
    return "".join(line for line in lines if line.split(":")[0] in wanted).encode()
