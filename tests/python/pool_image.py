"""Changes to the metadata of a pool in a file, with right checksums: what a fault of software would leave.

The layout is docs/on-disk-format.md and service/blob/format.h. Only for pools that nobody has open.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

PAGE_BYTES = 4096
_PAGE_MAGIC = 0x67506C50
_SUPER_MAGIC = 0x315853554C4C4F50
_SUPER_COPIES = (0, 32 << 10)
# magic, type, reserved, number, generation, crc, reserved
_HEADER = struct.Struct("<IHHQQII")
_CRC_AT = 24
# magic, version, features, id, created, cluster bytes, clusters, journal offset, journal bytes, checkpoint
_SUPER = struct.Struct("<QII16sqIIQQQ")
REFCOUNTS, DIRECTORY, LEAF = 1, 2, 5
_TYPE_SHIFT = 28
_REFERENCES = 0x03FF_FFFF
_SYSTEM, _METADATA = 0x7FFF_FFFF, 0x8000_0000


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def crc32c(data: bytes, seed: int = 0) -> int:
    crc = ~seed & 0xFFFF_FFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return ~crc & 0xFFFF_FFFF


@dataclasses.dataclass(frozen=True)
class _Page:
    offset: int
    number: int
    generation: int
    words: list[int]


class PoolImage:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._image = bytearray(path.read_bytes())
        supers = [_SUPER.unpack_from(self._image, at) for at in _SUPER_COPIES]
        newest = max((fields for fields in supers if fields[0] == _SUPER_MAGIC), key=lambda fields: fields[9])
        self._seed = crc32c(newest[3])
        self._checkpoint = newest[9]

    def save(self) -> None:
        self._path.write_bytes(self._image)

    def leak_a_cluster(self) -> None:
        """A cluster that nobody uses counts one reference."""
        self._change_one(REFCOUNTS, lambda word: 1 if word == 0 else None)

    def count_shared_leaves_low(self) -> None:
        """A leaf that two volumes share counts one reference."""
        self._change_one(DIRECTORY, lambda word: word - 1
                         if word >> _TYPE_SHIFT == LEAF and word & _REFERENCES == 2 else None)

    def spoil_reference_counts(self) -> None:
        """Neither copy of any page of them is valid."""
        for page in self._pages(REFCOUNTS, newest_only=False):
            self._image[page.offset + PAGE_BYTES - 1] ^= 1

    def _change_one(self, kind: int, change: Callable[[int], int | None]) -> None:
        for page in self._pages(kind):
            for index in reversed(range(len(page.words))):
                changed = change(page.words[index])
                if changed is not None:
                    page.words[index] = changed
                    self._write(page)
                    return
        raise AssertionError("the pool has nothing that could be changed so")

    def _pages(self, kind: int, *, newest_only: bool = True) -> Iterator[_Page]:
        newest: dict[int, _Page] = {}
        for at in range(0, len(self._image) - PAGE_BYTES + 1, PAGE_BYTES):
            magic, page_kind, _, number, generation, crc, _ = _HEADER.unpack_from(self._image, at)
            if magic != _PAGE_MAGIC or page_kind != kind or generation > self._checkpoint or crc != self._crc(at):
                continue
            words = list(struct.unpack_from(f"<{(PAGE_BYTES - _HEADER.size) // 4}I", self._image, at + _HEADER.size))
            page = _Page(at, number, generation, words)
            if not newest_only:
                yield page
            elif number not in newest or newest[number].generation < generation:
                newest[number] = page
        yield from newest.values()

    def _crc(self, at: int) -> int:
        page = self._image[at : at + PAGE_BYTES]
        page[_CRC_AT : _CRC_AT + 4] = bytes(4)
        return crc32c(page, self._seed)

    def _write(self, page: _Page) -> None:
        struct.pack_into(f"<{len(page.words)}I", self._image, page.offset + _HEADER.size, *page.words)
        struct.pack_into("<I", self._image, page.offset + _CRC_AT, self._crc(page.offset))
