"""Certificates for tests, made with the openssl command: a CA, and what it signs."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Identity:
    """A certificate and its key, both PEM files."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority whose files are in `folder`, which it makes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self.certificate = folder / "ca.pem"
        self._key = folder / "ca-key.pem"
        _openssl(
            *("req", "-x509", *_NEW_KEY, "-keyout", self._key, "-out", self.certificate),
            *("-days", "2", "-subj", "/CN=Pollux test CA"),
        )

    def issue(self, name: str, role: str = "", *, days: int = 1) -> Identity:
        """A certificate with common name `name` and, for clients, the role as its organisational unit.

        It is good for 127.0.0.1 and localhost. Negative `days` make one that has expired already.
        """
        identity = Identity(self._folder / f"{name}.pem", self._folder / f"{name}-key.pem")
        request = self._folder / f"{name}.csr"
        extensions = self._folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName=DNS:localhost,DNS:{name},IP:127.0.0.1\n")
        subject = f"/OU={role}/CN={name}" if role else f"/CN={name}"
        _openssl("req", *_NEW_KEY, "-keyout", identity.key, "-out", request, "-subj", subject)
        _openssl(
            *("x509", "-req", "-in", request, "-out", identity.certificate, "-days", str(days)),
            *("-CA", self.certificate, "-CAkey", self._key, "-extfile", extensions),
        )
        identity.key.chmod(0o600)
        return identity


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
