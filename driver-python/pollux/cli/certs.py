"""`polluxctl certs init`: a certificate authority and certificates for development and tests.

The OU of a client's certificate is its role, the CN its host: Cinder authorises compute hosts by that name. Keys are
readable by their owner alone. Production uses the certificates of its own authority, made alike.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import ipaddress
import os
import pathlib
import socket
from collections.abc import Iterator

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pollux import errors
from pollux.cli import base

ROLES = ('admin', 'cinder', 'compute', 'reader')
_CA_DAYS = 3650
_DAYS = 825
# RFC 5280, appendix A: ub-common-name.
_NAME_LIMIT = 64


@dataclasses.dataclass(frozen=True)
class _Pair:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def _name(common_name: str, role: str | None = None) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, 'Pollux')]
    if role:
        parts.append(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role))
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey,
             days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            # Clocks of hosts differ a little.
            .not_valid_before(now - datetime.timedelta(minutes=5)).not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False))


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(digital_signature=not signs_certificates, key_cert_sign=signs_certificates,
                         crl_sign=signs_certificates, content_commitment=False, key_encipherment=False,
                         data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False)


def _authority() -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name('Pollux development CA')
    certificate = (_builder(name, name, key, _CA_DAYS)
                   .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                   .add_extension(_usage(signs_certificates=True), critical=True)
                   .sign(key, hashes.SHA256()))
    return _Pair(certificate, key)


def _issue(authority: _Pair, host: str, role: str, hosts: list[str]) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    usage = ExtendedKeyUsageOID.SERVER_AUTH if role == 'server' else ExtendedKeyUsageOID.CLIENT_AUTH
    certificate = (_builder(_name(host, role), authority.certificate.subject, key, _DAYS)
                   .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
                   .add_extension(_usage(signs_certificates=False), critical=True)
                   .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
                   .add_extension(x509.SubjectAlternativeName(list(_alternative_names(hosts))), critical=False)
                   .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()),
                                  critical=False)
                   .sign(authority.key, hashes.SHA256()))
    return _Pair(certificate, key)


def _alternative_names(hosts: list[str]) -> Iterator[x509.GeneralName]:
    for name in dict.fromkeys([*hosts, 'localhost', '127.0.0.1', '::1']):
        try:
            yield x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            yield x509.DNSName(name)


def _write(path: pathlib.Path, content: bytes, mode: int) -> None:
    # Into a new file first: an existing one may have a wider mode, and must not be left half written.
    scratch = path.with_name(f'.{path.name}.new')
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, 'wb') as file:
        file.write(content)
    scratch.replace(path)


def _store(folder: pathlib.Path, stem: str, pair: _Pair) -> None:
    key = pair.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                 serialization.NoEncryption())
    _write(folder / f'{stem}-key.pem', key, 0o600)
    _write(folder / f'{stem}.pem', pair.certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def make(folder: pathlib.Path, hosts: list[str], *, force: bool = False) -> list[pathlib.Path]:
    """Write the authority and all certificates; what was written.

    The first host gets server.pem and one certificate for each role; every further one server-HOST.pem and
    compute-HOST.pem. Raises Exists when one of the files is there already, unless `force`, and Invalid for a host name
    that a certificate cannot hold.
    """
    for host in hosts:
        if not host.isascii() or not 0 < len(host) <= _NAME_LIMIT or any(char in host for char in ' /,=*'):
            raise errors.Invalid(f"'{host}' cannot be the name of a host in a certificate")
    first, *others = hosts
    wanted = [('server', first, 'server'), *((role, first, role) for role in ROLES)]
    for host in others:
        wanted += [(f'server-{host}', host, 'server'), (f'compute-{host}', host, 'compute')]
    stems = ['ca', *(stem for stem, _, _ in wanted)]
    paths = [folder / f'{stem}{part}' for stem in stems for part in ('.pem', '-key.pem')]
    there = [path for path in paths if path.exists()]
    if there and not force:
        raise errors.Exists(f'{there[0]} is there already. --force makes everything anew; services and clients that '
                            'have the old certificates then no longer know each other')
    folder.mkdir(parents=True, exist_ok=True)
    authority = _authority()
    for stem, host, role in wanted:
        _store(folder, stem, _issue(authority, host, role, [host]))
    _store(folder, 'ca', authority)
    return paths


class Init(base.Command):
    """Make a certificate authority and certificates for the service and for each role."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('folder', type=pathlib.Path, help='Where to write; made when it is missing.')
        parser.add_argument('--host', action='append', default=[], metavar='NAME',
                            help="A host, as Nova's option host has it; may be repeated. Default: this machine's name.")
        parser.add_argument('--force', action='store_true', help='Replace what is there.')
        return base.add_examples(parser, [
            'polluxctl certs init /etc/pollux/certs',
            'polluxctl certs init certs --host compute-1 --host compute-2'])

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        hosts = list(dict.fromkeys(parsed_args.host)) or [socket.gethostname()]
        paths = make(parsed_args.folder, hosts, force=parsed_args.force)
        self.say(f'{len(paths)} files in {parsed_args.folder} for {", ".join(hosts)}: '
                 f'ca.pem, server.pem, {", ".join(f"{role}.pem" for role in ROLES)} and their keys')
