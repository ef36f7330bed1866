"""Writes cpio archives of the "newc" kind, which is what the kernel unpacks as an initramfs.

Format: Documentation/driver-api/early-userspace/buffer-format.rst of the Linux kernel. Each member is
an ASCII header of 13 eight-digit hexadecimal fields after the magic, its name and its data, both padded
to four bytes.
"""

from __future__ import annotations

import stat
from pathlib import PurePosixPath

_MAGIC = b"070701"


class Archive:
    """Collects members in memory; `finish` yields the archive. Parent folders are added as needed."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._folders: set[str] = set()
        self._inode = 1

    def folder(self, path: str) -> None:
        name = path.strip("/")
        if not name or name in self._folders:
            return
        self.folder(str(PurePosixPath(name).parent).removeprefix("."))
        self._folders.add(name)
        self._member(name, stat.S_IFDIR | 0o755, b"")

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        name = path.strip("/")
        self.folder(str(PurePosixPath(name).parent).removeprefix("."))
        self._member(name, stat.S_IFREG | mode, data)

    def finish(self) -> bytes:
        self._member("TRAILER!!!", 0, b"")
        return b"".join(self._parts)

    def _member(self, name: str, mode: int, data: bytes) -> None:
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor,
        # namesize, check
        fields = (self._inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        self._inode += 1
        header = _MAGIC + b"".join(b"%08x" % field for field in fields)
        self._parts.append(_padded(header + encoded) + _padded(data))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
