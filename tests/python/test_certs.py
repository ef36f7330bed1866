"""polluxctl certs init."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from pollux import errors
from pollux.cli import certs


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def subject(path: Path, oid: x509.ObjectIdentifier) -> str:
    return str(load(path).subject.get_attributes_for_oid(oid)[0].value)


def test_every_role_gets_a_certificate_that_names_it(tmp_path: Path) -> None:
    certs.make(tmp_path / "certs", ["host-a"])
    for role in ("server", *certs.ROLES):
        path = tmp_path / "certs" / f"{role}.pem"
        assert subject(path, NameOID.ORGANIZATIONAL_UNIT_NAME) == role
        assert subject(path, NameOID.COMMON_NAME) == "host-a"
        load(path).verify_directly_issued_by(load(tmp_path / "certs" / "ca.pem"))


def test_certificates_name_the_host_and_the_loopback(tmp_path: Path) -> None:
    certs.make(tmp_path, ["host-a"])
    names = load(tmp_path / "server.pem").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["host-a", "localhost"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]


def test_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    for path in certs.make(tmp_path, ["host-a"]):
        expected = 0o600 if path.name.endswith("-key.pem") else 0o644
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_further_hosts_get_certificates_of_their_own(tmp_path: Path) -> None:
    certs.make(tmp_path, ["host-a", "host-b"])
    assert subject(tmp_path / "compute-host-b.pem", NameOID.COMMON_NAME) == "host-b"
    assert subject(tmp_path / "compute-host-b.pem", NameOID.ORGANIZATIONAL_UNIT_NAME) == "compute"
    assert (tmp_path / "server-host-b.pem").exists()


def test_what_is_there_is_replaced_only_when_forced(tmp_path: Path) -> None:
    certs.make(tmp_path, ["host-a"])
    before = (tmp_path / "ca.pem").read_bytes()
    with pytest.raises(errors.Exists, match="--force"):
        certs.make(tmp_path, ["host-a"])
    assert (tmp_path / "ca.pem").read_bytes() == before
    certs.make(tmp_path, ["host-a"], force=True)
    assert (tmp_path / "ca.pem").read_bytes() != before


@pytest.mark.parametrize("host", ["", "a b", "a/b", "*", "x" * 65])
def test_a_host_that_no_certificate_can_name_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(errors.Invalid):
        certs.make(tmp_path / "certs", [host])
    assert not (tmp_path / "certs").exists()
