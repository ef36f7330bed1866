"""pollux.client against a real service: trust, roles, deadlines, retries, concurrency."""

from __future__ import annotations

import concurrent.futures
import contextlib
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from guest.timing import wait_until
from pki import Authority
from pollux import errors
from pollux.client import Client
from pollux.client import settings as client_settings
from pollux.rpc import ttypes as rpc

from python import faults
from python.services import GIB, POOL, Service, new_id, volume_spec

# Refusals must come at once: this is how long the client would go on trying to reach somebody who is not there.
PATIENCE_MS = 30_000


def refusals_in_log(service: Service) -> list[str]:
    lines = service.log_text().splitlines()
    return [line for line in lines if re.search(r"refus|reject|handshake", line, re.IGNORECASE)]


# ---------------------------------------------------------------- trust


def test_a_client_with_a_good_certificate_is_served(service: Service) -> None:
    info = service.client().describe()
    assert info.host_id == "test-host"
    assert {"scsi", "blk"} <= info.capabilities


def test_a_client_without_certificate_is_refused(service: Service) -> None:
    context = ssl.create_default_context(cafile=str(service.polluxd.authority.certificate))
    # With TLS 1.3 a client learns only after its handshake that it is not wanted.
    with (
        socket_to(service) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
        pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"),
    ):
        secure.recv(1)


def test_a_certificate_of_another_authority_is_refused_at_once(service: Service, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "other").issue("stranger", "admin")
    assert_refused(service, service.client(stranger, connect_ms=PATIENCE_MS))


def test_an_expired_certificate_is_refused_at_once(service: Service) -> None:
    expired = service.polluxd.authority.issue("expired", "admin", days=-1)
    assert_refused(service, service.client(expired, connect_ms=PATIENCE_MS))


def assert_refused(service: Service, client: Client) -> None:
    lines_before = len(refusals_in_log(service))
    started = time.monotonic()
    with pytest.raises(errors.Untrusted) as caught:
        client.describe()
    assert time.monotonic() - started < PATIENCE_MS / 1000 / 2
    assert str(client.settings.certificate) in str(caught.value)
    assert service.address in str(caught.value)
    # The service writes its line when it has let the alert reach us.
    wait_until(lambda: len(refusals_in_log(service)) > lines_before, 10, "a line in the service's log")
    assert len(refusals_in_log(service)) == lines_before + 1


def test_a_service_of_another_authority_is_not_trusted(service: Service, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    with pytest.raises(errors.Untrusted, match="is not accepted"):
        service.client(ca=other.certificate, connect_ms=PATIENCE_MS).describe()


def test_a_service_with_another_name_is_not_trusted(service: Service) -> None:
    with pytest.raises(errors.Untrusted, match="elsewhere"):
        service.client(server_name="elsewhere.example", connect_ms=PATIENCE_MS).describe()


def test_a_plaintext_or_older_tls_session_is_refused(service: Service) -> None:
    context = ssl.create_default_context(cafile=str(service.polluxd.authority.certificate))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    identity = service.identities["admin"]
    context.load_cert_chain(identity.certificate, identity.key)
    with socket_to(service) as plain, pytest.raises((ssl.SSLError, ConnectionResetError)):
        context.wrap_socket(plain, server_hostname=service.polluxd.address[0])


def test_a_certificate_file_that_is_missing_is_named(service: Service, tmp_path: Path) -> None:
    with pytest.raises(errors.Untrusted, match=re.escape(str(tmp_path / "none.pem"))):
        service.client(certificate=tmp_path / "none.pem").describe()


def socket_to(service: Service) -> socket.socket:
    return socket.create_connection(service.polluxd.address, timeout=10)


# ---------------------------------------------------------------- roles


@pytest.mark.parametrize("role", ["reader", "compute", "cinder"])
def test_only_an_admin_makes_pools(service: Service, role: str) -> None:
    with pytest.raises(errors.Denied, match=role):
        service.client(role).pool_export(POOL)
    assert [pool.name for pool in service.client("reader").pool_list()] == [POOL]


@pytest.mark.parametrize("role", ["reader", "compute"])
def test_who_may_not_create_volumes_is_denied(service: Service, role: str) -> None:
    spec = volume_spec(new_id())
    with pytest.raises(errors.Denied, match=role):
        service.client(role).volume_create(POOL, spec)
    with pytest.raises(errors.NotFound):
        service.client().volume_describe(spec.volume_id)


def test_an_unknown_role_gets_nothing(service: Service) -> None:
    nobody = service.polluxd.authority.issue("nobody", "gardener")
    with pytest.raises((errors.Denied, errors.Untrusted)):
        service.client(nobody).describe()


# ---------------------------------------------------------------- repetition


def test_a_repeated_request_answers_the_same(service: Service) -> None:
    client, spec = service.client("cinder"), volume_spec(new_id())
    first, again = client.volume_create(POOL, spec), client.volume_create(POOL, spec)
    assert first == again
    client.volume_delete(spec.volume_id)
    client.volume_delete(spec.volume_id)


def test_the_same_id_with_other_parameters_exists(service: Service) -> None:
    client, volume_id = service.client("cinder"), new_id()
    client.volume_create(POOL, volume_spec(volume_id))
    with pytest.raises(errors.Exists):
        client.volume_create(POOL, volume_spec(volume_id, 2 * GIB))
    client.volume_delete(volume_id)


def test_a_call_whose_answer_was_lost_is_repeated_and_happens_once(service: Service) -> None:
    link = faults.Link(service.polluxd.address)
    try:
        client, spec = service.client("cinder", address=link.address), volume_spec(new_id())
        client.describe()
        link.lose_next_answer()
        assert client.volume_create(POOL, spec).volume_id == spec.volume_id
        assert link.lost == 1
        assert link.connections == 2
        assert [one.volume_id for one in client.volumes(POOL) if one.name == spec.name] == [spec.volume_id]
        client.volume_delete(spec.volume_id)
    finally:
        link.close()


def test_volumes_are_listed_over_all_pages(service: Service) -> None:
    client = service.client("cinder")
    made = {client.volume_create(POOL, volume_spec(new_id())).volume_id for _ in range(7)}
    assert made <= {one.volume_id for one in client.volumes(POOL, page_size=3)}
    for volume_id in made:
        client.volume_delete(volume_id)


def test_a_refusal_of_the_generated_client_passes_context_managers(service: Service) -> None:
    missing = new_id()
    with (
        pytest.raises(rpc.PolluxError, match=missing) as refusal,
        service.polluxd.calls() as calls,
    ):
        calls.volume_describe(rpc.RequestContext(request_id="req-missing"), missing)
    assert refusal.value.code == rpc.ErrorCode.NOT_FOUND


# ---------------------------------------------------------------- away, slow, gone


def test_a_service_that_is_down_is_named_after_connect_ms(own_service: Service) -> None:
    own_service.polluxd.stop()
    started = time.monotonic()
    with pytest.raises(errors.Unreachable, match=own_service.address):
        own_service.client(connect_ms=700).describe()
    assert 0.3 < time.monotonic() - started < 5


def test_a_call_outlasts_a_restart(own_service: Service) -> None:
    client = own_service.client(connect_ms=PATIENCE_MS)
    client.describe()
    own_service.polluxd.kill()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        call = pool.submit(client.describe)
        with pytest.raises(TimeoutError):
            call.result(0.3)
        own_service.polluxd.start()
        assert call.result(30).host_id == "test-host"


def test_a_silent_service_costs_no_more_than_the_deadline(service: Service) -> None:
    with faults.silent_listener() as address:
        started = time.monotonic()
        with pytest.raises(errors.Unreachable, match=address):
            service.client(address=address, deadline_ms=500, connect_ms=PATIENCE_MS).describe()
        assert 0.3 < time.monotonic() - started < 5


def test_a_service_that_asks_to_come_back_later_is_asked_again(service: Service) -> None:
    refusing = faults.Refusing(3)
    with speaking_as_service(service, refusing.answer) as client:
        assert client.describe(request_id="req-1").host_id == "fake"
    # The service can tell that they are one request.
    assert refusing.asked == ["req-1"] * 4


def test_a_service_that_never_can_ends_with_its_own_words_at_the_deadline(service: Service) -> None:
    started = time.monotonic()
    with (
        speaking_as_service(service, faults.Refusing(1 << 30).answer, deadline_ms=600) as client,
        pytest.raises(errors.Retry, match="another change is under way"),
    ):
        client.describe()
    assert 0.2 < time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"\x7f\xff\xff\xff", "announced an answer of 2147483647 bytes"),
        (b"\0\0\0\x08not this", "cannot be read"),
    ],
)
def test_an_answer_that_is_none_is_an_error(service: Service, answer: bytes, says: str) -> None:
    with (
        speaking_as_service(service, lambda request: answer, connect_ms=PATIENCE_MS) as client,
        pytest.raises(errors.Internal, match=says),
    ):
        client.describe()


@contextlib.contextmanager
def speaking_as_service(service: Service, answer: Callable[[bytes], bytes], **changes: Any) -> Iterator[Client]:
    authority = service.polluxd.authority
    with faults.speaking(answer, authority.issue("fake"), authority.certificate) as address:
        yield service.client(address=address, **changes)


# ---------------------------------------------------------------- threads and green threads


def test_threads_share_a_client(service: Service) -> None:
    client, spec = service.client("cinder"), volume_spec(new_id())
    client.volume_create(POOL, spec)
    start = threading.Barrier(16)

    def work(_: int) -> set[str]:
        start.wait(30)
        return {client.volume_describe(spec.volume_id).name for _ in range(20)}

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert set().union(*pool.map(work, range(16))) == {spec.name}
    client.volume_delete(spec.volume_id)


def test_green_threads_share_a_client_and_never_block_each_other(service: Service) -> None:
    settings = service.settings("cinder")
    with faults.silent_listener() as silent:
        done = subprocess.run(
            [
                *(sys.executable, "-W", "ignore", str(Path(__file__).with_name("green_client.py"))),
                *(settings.address, str(settings.ca), str(settings.certificate), str(settings.key), silent),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "served 200" in done.stdout
    assert "gave up" in done.stdout
    # Who waits for the listener that never answers waits for four seconds; nobody else may.
    assert float(re.search(r"longest gap ([\d.]+) s", done.stdout)[1]) < 3


# ---------------------------------------------------------------- settings


def test_settings_come_from_options_environment_and_file_in_this_order(tmp_path: Path) -> None:
    file = tmp_path / "client.toml"
    file.write_text('address = "file:1"\nca = "/f/ca"\ncertificate = "/f/cert"\nkey = "/f/key"\ndeadline_ms = 5\n')
    environment = {"POLLUX_CLIENT_CONF": str(file), "POLLUX_CA": "/e/ca", "POLLUX_KEY": "/e/key"}
    settings = client_settings.load({"key": "/o/key", "ca": None}, environment)
    assert (settings.address, str(settings.ca), str(settings.key)) == ("file:1", "/e/ca", "/o/key")
    assert settings.deadline_ms == 5


def test_a_file_with_an_unknown_key_or_a_bad_value_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "client.toml"
    file.write_text('adress = "x"\n')
    with pytest.raises(errors.Misconfigured, match=r"client\.toml: unknown key adress"):
        client_settings.load(None, {"POLLUX_CLIENT_CONF": str(file)})
    file.write_text('deadline_ms = "soon"\n')
    with pytest.raises(errors.Misconfigured, match="deadline_ms: 'soon'"):
        client_settings.load(None, {"POLLUX_CLIENT_CONF": str(file)})


def test_a_missing_setting_says_where_it_can_be_given() -> None:
    with pytest.raises(errors.Misconfigured, match="POLLUX_ADDRESS"):
        client_settings.load({}, {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("host", ("host", 9640)),
        ("[::1]:7", ("::1", 7)),
        ("[::1]", ("::1", 9640)),
        ("::1", ("::1", 9640)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert client_settings.split_address(text) == expected


@pytest.mark.parametrize("text", ["", ":1", "host:", "host:0", "host:65536", "host:x"])
def test_bad_addresses_are_refused(text: str) -> None:
    with pytest.raises(errors.Misconfigured):
        client_settings.split_address(text)
