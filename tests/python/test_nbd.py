"""The service's NBD sockets, as the programs that use them see them."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
from pollux import errors, nbd
from pollux.rpc import ttypes as rpc

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


def leave_a_throttled_writer(service: Service, source: Path) -> str:
    """A client that was killed while a limit would keep its requests for minutes. The socket's id."""
    client = service.client("admin")
    volume_id, socket_id = service.create_volume(GIB).volume_id, new_id()
    client.volume_set_qos(volume_id, rpc.QosLimits(write_bytes_per_s=128 << 10))
    info = client.data_open(rpc.DataSocketSpec(socket_id=socket_id, volume_id=volume_id, read_only=False))
    source.write_bytes(b"\x5a" * (64 * MIB))
    copy = subprocess.Popen(["nbdcopy", "--requests=64", str(source), nbd.url(info)])
    try:
        deadline = time.monotonic() + 60
        # By the third request all that may be under way have arrived.
        while client.volume_stats(volume_id).write_bytes < 3 * (256 << 10):
            assert copy.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        copy.kill()
        copy.wait()
    return socket_id


def test_a_throttled_socket_whose_client_was_killed_closes(service: Service, tmp_path: Path) -> None:
    socket_id = leave_a_throttled_writer(service, tmp_path / "source")
    client = service.client("admin")
    begin = time.monotonic()
    client.data_close(socket_id)
    assert time.monotonic() - begin < 20


def test_sigterm_ends_the_service_though_a_throttled_socket_lost_its_client(own_service: Service,
                                                                            tmp_path: Path) -> None:
    leave_a_throttled_writer(own_service, tmp_path / "source")
    begin = time.monotonic()
    assert own_service.polluxd.stop() == 0
    assert time.monotonic() - begin < 20


# A client that sends what it is told to, also what it holds for wrong.
FLAGS = """
h.set_strict_mode(0)
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(URL)
assert h.can_fua()
h.pwrite(b"x" * 4096, 0, nbd.CMD_FLAG_FUA)
assert h.pread(4096, 0, nbd.CMD_FLAG_FUA) == b"x" * 4096
h.flush(nbd.CMD_FLAG_FUA)
h.zero(4096, 0, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE)
h.trim(4096, 0, nbd.CMD_FLAG_FUA)
seen = []
h.block_status(4096, 0, lambda *extent: seen.append(extent), nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_REQ_ONE)
assert len(seen) == 1
for refused in (lambda: h.pread(4096, 0, nbd.CMD_FLAG_NO_HOLE), lambda: h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO),
                lambda: h.pread(0, 0), lambda: h.pread(64 << 20, 0)):
    try:
        refused()
    except nbd.Error as error:
        assert error.errno in ("EINVAL", "EOVERFLOW", "ERANGE"), error
    else:
        raise AssertionError("not refused")
assert len(h.pread(h.get_block_size(nbd.SIZE_MAXIMUM), 0)) == h.get_block_size(nbd.SIZE_MAXIMUM)
h.shutdown()
"""


def test_libnbd_is_answered_as_the_protocol_says(service: Service) -> None:
    volume_id = service.create_volume(GIB).volume_id
    with nbd.open_volume(service.client("admin"), volume_id, read_only=False) as url:
        # Debian's package is for Debian's Python, whatever comes first on the path.
        program = f"import nbd\nh = nbd.NBD()\nURL = {url!r}\n{FLAGS}"
        done = subprocess.run(["/usr/bin/python3", "-c", program], check=False, capture_output=True, text=True,
                              timeout=120)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- one writer


def attach(service: Service, volume_id: str, *, read_only: bool = False) -> rpc.AttachmentInfo:
    return service.client("admin").attach(rpc.AttachSpec(
        attachment_id=new_id(), volume_id=volume_id, client_id=new_id(), transport=rpc.Transport.SCSI,
        read_only=read_only))


def open_socket(service: Service, volume_id: str, **how: bool) -> str:
    socket_id = new_id()
    service.client("admin").data_open(rpc.DataSocketSpec(socket_id=socket_id, volume_id=volume_id, **how))
    return socket_id


def test_a_socket_that_writes_and_a_guest_that_writes_exclude_each_other(service: Service) -> None:
    volume_id, client = service.create_volume(GIB).volume_id, service.client("admin")
    # First the socket.
    socket_id = open_socket(service, volume_id)
    with pytest.raises(errors.Busy, match="data socket"):
        attach(service, volume_id)
    with pytest.raises(errors.Busy, match="data socket"):
        open_socket(service, volume_id, shared=True)
    assert client.attachment_list(volume_id, "") == []
    reader = attach(service, volume_id, read_only=True)
    also_reads = open_socket(service, volume_id, read_only=True)
    client.data_close(socket_id)
    # First the guest, and a second one: who shares among guests is not the service's business.
    guest, second = attach(service, volume_id), attach(service, volume_id)
    with pytest.raises(errors.Busy, match="guest"):
        open_socket(service, volume_id)
    shared = [open_socket(service, volume_id, shared=True) for _ in range(2)]
    for attachment in (guest, second, reader):
        client.detach(attachment.attachment_id)
    with pytest.raises(errors.Busy, match="shared"):
        open_socket(service, volume_id)
    for one in (*shared, also_reads):
        client.data_close(one)
    client.data_close(open_socket(service, volume_id))
    client.volume_delete(volume_id)


def test_a_restart_forgets_sockets_and_brings_guests_back(own_service: Service, tmp_path: Path) -> None:
    client = own_service.client("admin")
    device = rpc.BdevSpec(kind=rpc.BdevKind.URING, path=str(tmp_path / "pool"), size_bytes=128 * MIB)
    client.pool_create(rpc.PoolSpec(pool_id=new_id(), name="disk", bdev=device))
    volume_id = own_service.create_volume(64 * MIB, pool="disk").volume_id
    attach(own_service, volume_id)
    open_socket(own_service, volume_id, shared=True)
    own_service.polluxd.kill()
    own_service.polluxd.start()
    with pytest.raises(errors.Busy, match="guest"):
        open_socket(own_service, volume_id)
    open_socket(own_service, volume_id, shared=True)
