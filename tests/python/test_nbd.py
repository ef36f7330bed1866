"""The service's NBD sockets, as the programs that use them see them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from pollux import nbd

from python.services import GIB, Service, new_id

MIB = 1 << 20


def extents(url: str) -> list[tuple[int, int, bool]]:
    """What qemu-img knows of an image without reading it: (start, length, holds data)."""
    done = subprocess.run(["qemu-img", "map", "--output=json", "-f", "raw", url], check=True, capture_output=True,
                          text=True, timeout=120)
    return [(one["start"], one["length"], one["data"]) for one in json.loads(done.stdout)]


def write(url: str, at: int, length: int) -> None:
    subprocess.run(["qemu-io", "-f", "raw", "-c", f"write -P 0x5a {at} {length}", "-c", "flush", url], check=True,
                   capture_output=True, timeout=120)


def test_programs_see_where_a_thin_volume_holds_data(service: Service, tmp_path: Path) -> None:
    client = service.client("admin")
    volume_id = service.create_volume(8 * GIB).volume_id
    with nbd.open_volume(client, volume_id, read_only=False) as url:
        assert extents(url) == [(0, 8 * GIB, False)]
        write(url, 64 * MIB, MIB)
        write(url, 5 * GIB, MIB)
    expected = [(0, 64 * MIB, False), (64 * MIB, MIB, True), (65 * MIB, 5 * GIB - 65 * MIB, False),
                (5 * GIB, MIB, True), (5 * GIB + MIB, 3 * GIB - MIB, False)]
    snapshot = client.snapshot_create(volume_id, new_id(), "snapshot")
    for readable in (volume_id, snapshot.volume_id):
        with nbd.open_volume(client, readable, read_only=True) as url:
            assert extents(url) == expected
    # A copy takes what is there, and no more: reads of the rest would show in the volume's counters.
    before = client.volume_stats(volume_id).read_bytes
    copy = tmp_path / "copy.qcow2"
    with nbd.open_volume(client, volume_id, read_only=True) as url:
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", url, str(copy)], check=True, timeout=120)
        subprocess.run(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(copy), url], check=True, timeout=120)
    assert client.volume_stats(volume_id).read_bytes - before < 16 * MIB
