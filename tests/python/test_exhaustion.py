"""What nobody outside may use up: places at the service's ports, descriptors, lines of the log."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import socket
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest.timing import wait_until
from pollux.rpc import ttypes as rpc
from pollux_testing import Polluxd

from python.services import GIB, Service, new_id

# Of one call with a connection of its own, on a busy machine.
PATIENCE_S = 8


@pytest.fixture
def polluxd(tmp_path: Path) -> Iterator[Polluxd]:
    """Not started yet, with a page of metrics."""
    with tempfile.TemporaryDirectory(prefix="pollux-") as folder:
        service = Polluxd(Path(folder), tmp_path / "polluxd.log")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            metrics = "{}:{}".format(*probe.getsockname())
        text = service.config.read_text()
        service.config.write_text(text.replace('[metrics]\nlisten = ""', f'[metrics]\nlisten = "{metrics}"'))
        yield service
        service.close()


def metrics_address(polluxd: Polluxd) -> tuple[str, int]:
    found = re.search(r'\[metrics\]\nlisten = "(.*):(\d+)"', polluxd.config.read_text())
    assert found
    return found[1], int(found[2])


def calls_succeed(polluxd: Polluxd, count: int) -> None:
    for _ in range(count):
        begin = time.monotonic()
        with polluxd.calls() as service:
            service.describe(rpc.RequestContext())
        assert time.monotonic() - begin < PATIENCE_S


def page_is_served(polluxd: Polluxd) -> None:
    begin = time.monotonic()
    url = "http://{}:{}/metrics".format(*metrics_address(polluxd))
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as page:
        assert b"pollux_" in page.read()
    assert time.monotonic() - begin < PATIENCE_S


@contextlib.contextmanager
def silent(to: tuple[str, int], sources: list[str], count: int, say: bytes = b"") -> Iterator[None]:
    """`count` connections from the given addresses; nothing, or no more than `say`, comes from them."""
    with contextlib.ExitStack() as held:
        for number in range(count):
            one = held.enter_context(socket.socket())
            one.bind((sources[number % len(sources)], 0))
            one.settimeout(10)
            one.connect(to)
            with contextlib.suppress(OSError):
                one.sendall(say)
        yield


@pytest.mark.parametrize("sources", [["127.0.0.1"], [f"127.0.0.{n}" for n in range(2, 32)]], ids=["one", "several"])
@pytest.mark.parametrize("say", [b"", b"\x16\x03\x01"], ids=["silent", "begun"])
def test_connections_without_certificate_shut_neither_the_port_nor_the_page(polluxd: Polluxd, sources: list[str],
                                                                            say: bytes) -> None:
    polluxd.start()
    with contextlib.ExitStack() as held:
        before = held.enter_context(polluxd.calls())
        held.enter_context(silent(polluxd.address, sources, 300, say))
        held.enter_context(silent(metrics_address(polluxd), sources, 300, say))
        calls_succeed(polluxd, 40)
        page_is_served(polluxd)
        before.describe(rpc.RequestContext())


def highest_descriptor(pid: int) -> int:
    return max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))


def test_out_of_descriptors_an_operator_still_gets_in_and_the_log_stays_short(own_service: Service) -> None:
    polluxd = own_service.polluxd
    client = own_service.client("admin")
    volume_id = own_service.create_volume(GIB).volume_id
    spec = rpc.DataSocketSpec(socket_id=new_id(), volume_id=volume_id, read_only=True)
    paths = [client.data_open(spec).path]
    paths += [client.attach(rpc.AttachSpec(attachment_id=new_id(), volume_id=volume_id, client_id=new_id(),
                                           transport=rpc.Transport.BLK)).socket_path for _ in range(40)]
    limit = highest_descriptor(polluxd.pid) + 100
    _, hard = resource.prlimit(polluxd.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(polluxd.pid, resource.RLIMIT_NOFILE, (limit, hard))
    lines_before = own_service.log_text().count("accept")
    begin = time.monotonic()
    with contextlib.ExitStack() as held:
        for number in range(5 * len(paths)):
            one = held.enter_context(socket.socket(socket.AF_UNIX))
            one.settimeout(10)
            one.connect(paths[number % len(paths)])
        wait_until(lambda: "Too many open files" in own_service.log_text(), 20, "descriptors used up")
        calls_succeed(polluxd, 20)
        time.sleep(3)
        lines = own_service.log_text().count("accept") - lines_before
    # Two kinds of listeners have five lines each, and one a second after that.
    assert lines <= 2 * (6 + time.monotonic() - begin)
    resource.prlimit(polluxd.pid, resource.RLIMIT_NOFILE, (hard, hard))
    calls_succeed(polluxd, 1)


def test_the_limit_of_descriptors_is_raised_at_start(polluxd: Polluxd) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 4096)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, wanted) // 2, hard))
    try:
        polluxd.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(polluxd.pid, resource.RLIMIT_NOFILE) == (hard, hard)


def test_a_start_without_state_is_not_silent(polluxd: Polluxd) -> None:
    guests = polluxd.folder / "run" / "vhost"
    guests.mkdir(parents=True)
    (guests / "scsi-4f0b7e32-5a51-4b5f-9f5c-6a1f0c0f2f11.sock").touch()
    polluxd.start()
    said = polluxd.log.read_text()
    assert f"there is no state in {polluxd.folder}/state" in said
    assert "pool import" in said
    assert f"1 sockets of guests in {guests}" in said
    polluxd.stop()
    polluxd.start()
    assert polluxd.log.read_text().count("there is no state") == 1
