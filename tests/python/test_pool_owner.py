"""Two services that see one device under two names: only one of them has its pool open."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pollux import errors
from pollux.rpc import ttypes as rpc

from python.services import Service, new_id, volume_spec

MIB = 1 << 20
_PATIENCE_S = 60

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")


class Views:
    """A file with a pool that the first service has open, and a loop device over it for the second."""

    def __init__(self, first: Service, second: Service, file: Path) -> None:
        self.first, self.second, self.file = first, second, file
        self.name = f"p-{new_id()[:8]}"
        first.client().pool_create(rpc.PoolSpec(
            pool_id=new_id(), name=self.name, cluster_bytes=64 << 10,
            bdev=rpc.BdevSpec(kind=rpc.BdevKind.URING, path=str(file), size_bytes=64 * MIB)))
        self.volume = first.client().volume_create(self.name, volume_spec(new_id(), 16 * MIB)).volume_id
        self.loop = subprocess.run(["losetup", "--find", "--show", str(file)], capture_output=True, text=True,
                                   check=True).stdout.strip()

    def import_loop(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.polluxctl(self.second, "pool", "import", "--device", self.loop, *options)

    def polluxctl(self, service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "pollux.cli.main", *arguments],
                              env={**os.environ, **service.environment()}, capture_output=True, text=True, timeout=120,
                              check=False)

    def metric(self, service: Service, name: str) -> float:
        with urllib.request.urlopen(service.polluxd.metrics_url, timeout=30) as page:
            lines = page.read().decode().splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f'{name}{{pool="{self.name}"}}'))

    def await_loss(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not self.first.client().pool_describe(self.name).lost_to:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def import_file(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.polluxctl(self.first, "pool", "import", "--file", str(self.file), *options)

    def write(self, service: Service) -> subprocess.CompletedProcess[str]:
        client = service.client()
        opened = client.data_open(rpc.DataSocketSpec(socket_id=new_id(), volume_id=self.volume))
        url = f"nbd+unix:///{opened.export_name}?socket={opened.path}"
        try:
            return subprocess.run(["qemu-io", "-f", "raw", "-c", "write -P 0x5a 0 256k", "-c", "flush", url],
                                  capture_output=True, text=True, check=False)
        finally:
            # Closes also where the flush that belongs to it fails.
            with contextlib.suppress(errors.PolluxError):
                client.data_close(opened.socket_id)


@pytest.fixture
def views(start_service: Callable[..., Service], request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Views]:
    name = request.node.name
    views = Views(start_service(f"{name}-first", metrics=True), start_service(f"{name}-second"), tmp_path / "pool.img")
    yield views
    for service in (views.first, views.second):
        service.polluxd.kill()
    subprocess.run(["losetup", "--detach", views.loop], check=True)


def test_a_pool_that_another_service_has_is_refused_until_that_is_dead(views: Views) -> None:
    views.write(views.first).check_returncode()
    refused = views.import_loop()
    assert refused.returncode == 4, refused.stderr
    assert "is open elsewhere" in refused.stderr
    assert "test-host" in refused.stderr
    program = os.environ.get("POLLUXD") or Path(os.environ["POLLUX_BUILD"]) / "service" / "polluxd"
    checked = subprocess.run([program, "--fsck", views.loop], capture_output=True, text=True, check=False)
    assert checked.returncode == 8
    assert "is open elsewhere" in checked.stdout
    views.write(views.first).check_returncode()

    views.first.polluxd.kill()
    taken = views.import_loop()
    assert taken.returncode == 0, taken.stderr
    assert "counts as dead" in views.second.log_text()
    views.write(views.second).check_returncode()
    # The first comes back, and finds it gone.
    views.first.polluxd.start()
    assert views.name not in {pool.name for pool in views.first.client().pool_list()}
    assert "is open elsewhere" in views.first.log_text()


def test_its_own_service_has_the_pool_back_at_once(views: Views) -> None:
    for _ in range(3):
        views.first.polluxd.kill()
        views.first.polluxd.start()
        assert views.name in {pool.name for pool in views.first.client().pool_list()}
    assert "watching whether that is alive" not in views.first.log_text()
    # Also by another name.
    views.first.client().pool_export(views.name)
    taken = views.import_loop()
    assert taken.returncode == 0, taken.stderr
    assert "watching whether that is alive" not in views.second.log_text()


def test_one_service_does_not_open_a_pool_twice(views: Views) -> None:
    with pytest.raises(errors.Exists, match="is open already"):
        views.first.client().pool_import(rpc.BdevSpec(kind=rpc.BdevKind.URING, path=views.loop))
    views.write(views.first).check_returncode()


def test_who_loses_a_pool_by_force_stops_writing(views: Views) -> None:
    views.write(views.first).check_returncode()
    taken = views.import_loop("--force")
    assert taken.returncode == 0, taken.stderr
    deadline = time.monotonic() + _PATIENCE_S
    while "nothing is written to it from here any more" not in views.first.log_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # Nothing of the first reaches the device: not a write, not a stop.
    assert "write failed" in views.write(views.first).stdout
    views.write(views.second).check_returncode()


def test_a_lost_pool_is_shown_as_lost_and_stays_so_until_it_is_imported_again(views: Views) -> None:
    views.write(views.first).check_returncode()
    assert views.metric(views.first, "pollux_pool_lost") == 0
    client = views.first.client()
    opened = client.data_open(rpc.DataSocketSpec(socket_id=new_id(), volume_id=views.volume, read_only=True))
    views.import_loop("--force").check_returncode()
    views.await_loss()
    lost = client.pool_describe(views.name)
    assert "test-host" in lost.lost_to
    assert lost.failure
    assert lost.failed_at_ms
    listed = views.polluxctl(views.first, "pool", "list", "-c", "Name", "-c", "State", "-f", "value")
    assert f"{views.name} lost" in listed.stdout.splitlines(), listed.stderr
    assert views.metric(views.first, "pollux_pool_lost") == 1
    assert views.metric(views.first, "pollux_pool_failed") == 1

    # Its owner is alive; then a volume of it is in use here.
    client.data_close(opened.socket_id)
    refused = views.import_file()
    assert refused.returncode == 4, refused.stderr
    assert "is open elsewhere" in refused.stderr
    views.second.client().pool_export(views.name)
    opened = client.data_open(rpc.DataSocketSpec(socket_id=new_id(), volume_id=views.volume, read_only=True))
    refused = views.import_file()
    assert refused.returncode == 4, refused.stderr
    assert "was lost to another owner" in refused.stderr
    client.data_close(opened.socket_id)
    assert client.pool_describe(views.name).lost_to == lost.lost_to
    assert "takes changes again" not in views.first.log_text()

    views.import_file().check_returncode()
    found = client.pool_describe(views.name)
    assert not found.lost_to
    assert not found.failure
    assert views.metric(views.first, "pollux_pool_lost") == 0
    views.write(views.first).check_returncode()


def test_a_lost_pool_is_exported_without_an_error(views: Views) -> None:
    views.import_loop("--force").check_returncode()
    client = views.first.client()
    views.await_loss()
    client.pool_export(views.name)
    assert views.name not in {pool.name for pool in client.pool_list()}
    views.write(views.second).check_returncode()


def test_a_data_socket_closes_though_its_flush_fails(views: Views) -> None:
    client = views.first.client()
    opened = client.data_open(rpc.DataSocketSpec(socket_id=new_id(), volume_id=views.volume))
    url = f"nbd+unix:///{opened.export_name}?socket={opened.path}"
    subprocess.run(["qemu-io", "-f", "raw", "-c", "write -P 0x11 1M 64k", url], check=True, stdout=subprocess.DEVNULL)
    views.import_loop("--force").check_returncode()
    views.await_loss()
    with pytest.raises(errors.Internal, match="is closed, but what was written to it may not be durable"):
        client.data_close(opened.socket_id)
    assert not Path(opened.path).exists()
    # Closing what is closed succeeds, and nothing holds the volume any more.
    client.data_close(opened.socket_id)
    client.pool_export(views.name)


def attach(views: Views) -> str:
    spec = rpc.AttachSpec(attachment_id=new_id(), volume_id=views.volume, client_id=f"guest-{new_id()}",
                          transport=rpc.Transport.SCSI)
    return views.first.client().attach(spec).attachment_id


@pytest.mark.parametrize("end", ["after it has noticed", "before"])
def test_a_guest_does_not_get_a_disk_back_that_another_service_has_used_meanwhile(views: Views, end: str) -> None:
    attachment = attach(views)
    if end == "before":
        views.first.polluxd.kill()
    views.import_loop("--force").check_returncode()
    if end != "before":
        views.await_loss()
        views.first.polluxd.kill()
    views.write(views.second).check_returncode()
    views.second.client().pool_export(views.name)

    # Nobody has the pool now. The guest of the first may still be alive.
    for _ in range(2):
        views.first.polluxd.start()
        client = views.first.client()
        assert views.name not in {pool.name for pool in client.pool_list()}
        assert "was used by another service" in views.first.log_text()
        for options in ([], ["--force"]):
            refused = views.import_file(*options)
            assert refused.returncode == 4, refused.stderr
            assert "Stop those guests and detach the volumes" in refused.stderr
        views.first.polluxd.kill()
    views.first.polluxd.start()
    client = views.first.client()
    assert [one.attachment_id for one in client.attachment_list()] == [attachment]
    client.detach(attachment)
    views.import_file().check_returncode()
    views.write(views.first).check_returncode()


def test_a_guest_gets_its_disk_back_after_a_repair(views: Views) -> None:
    attachment = attach(views)
    views.first.polluxd.kill()
    program = os.environ.get("POLLUXD") or Path(os.environ["POLLUX_BUILD"]) / "service" / "polluxd"
    subprocess.run([program, "--fsck", str(views.file), "--repair"], check=True, stdout=subprocess.DEVNULL)
    views.first.polluxd.start()
    assert views.name in {pool.name for pool in views.first.client().pool_list()}
    views.first.client().detach(attachment)
