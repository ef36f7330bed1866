"""One TLS connection to polluxd that carries framed Thrift, every byte of it under a deadline.

TLS 1.3 with certificates on both sides; the service's name is verified. A connection is used by one thread (or green
thread) at a time: `client.py` sees to that. Nothing here keeps a lock.
"""

from __future__ import annotations

import contextlib
import pathlib
import socket
import ssl
import struct
import time

from thrift.transport.TTransport import TTransportBase

from pollux import errors
from pollux.client.settings import Settings

_HEADER = struct.Struct('!I')
#: How long to look for the service's reason after it closed the connection on us.
_REASON_S = 1.0
#: TLS alerts (RFC 8446 6.2) by which a service says that it does not accept our certificate.
_REFUSALS = ('CERTIFICATE', 'UNKNOWN_CA', 'ACCESS_DENIED')


class Connection(TTransportBase):
    """A connected, verified transport for a Thrift protocol. Raises errors of pollux.errors, and OSError never."""

    def __init__(self, settings: Settings, deadline: float) -> None:
        """Connect and shake hands until `deadline` (time.monotonic). Raises Unreachable or Untrusted."""
        self._settings = settings
        self.deadline = deadline
        self._out = bytearray()
        self._in = memoryview(b'')
        self.used = False
        self._socket = self._connect()

    # ------------------------------------------------------------------ what a Thrift protocol asks for

    def isOpen(self) -> bool:
        return self._socket.fileno() >= 0

    def open(self) -> None:
        """It was opened when it was made."""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()

    def write(self, buf: bytes) -> None:
        self._out += buf

    def flush(self) -> None:
        frame = _HEADER.pack(len(self._out)) + self._out
        self._out.clear()
        try:
            self._socket.settimeout(self._left())
            self._socket.sendall(frame)
        except OSError as error:
            # A service that refuses our certificate closes after its alert (TLS 1.3 verifies clients last).
            raise self._explain(self._reason() or error) from error

    def read(self, sz: int) -> bytes:
        if not self._in:
            self._in = memoryview(self._frame())
        taken = bytes(self._in[:sz])
        self._in = self._in[sz:]
        return taken

    # ------------------------------------------------------------------ inside

    def _frame(self) -> bytes:
        size, = _HEADER.unpack(self._receive(_HEADER.size))
        if size > self._settings.max_frame_bytes:
            raise errors.Internal(f'{self._settings.address} announced an answer of {size} bytes; '
                                  f'{self._settings.max_frame_bytes} is the limit')
        return self._receive(size)

    def _receive(self, size: int) -> bytes:
        got = bytearray()
        while len(got) < size:
            try:
                self._socket.settimeout(self._left())
                part = self._socket.recv(size - len(got))
            except OSError as error:
                raise self._explain(error) from error
            if not part:
                raise errors.Unreachable(f'The service at {self._settings.address} closed the connection')
            got += part
        return bytes(got)

    def _left(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError('the deadline is over')
        return left

    def _connect(self) -> ssl.SSLSocket:
        settings = self._settings
        context = _context(settings)
        plain: socket.socket | None = None
        try:
            plain = socket.create_connection(settings.host_and_port, timeout=self._left())
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.settimeout(self._left())
            return context.wrap_socket(plain, server_hostname=settings.expected_name)
        except OSError as error:
            if plain is not None:
                plain.close()
            raise self._explain(error) from error

    def _reason(self) -> OSError | None:
        """The TLS alert that waits to be read after a write failed, if there is one."""
        try:
            self._socket.settimeout(_REASON_S)
            self._socket.recv(1)
        except ssl.SSLError as error:
            return error
        except OSError:
            return None
        return None

    def _explain(self, error: OSError) -> errors.PolluxError:
        settings = self._settings
        if isinstance(error, ssl.SSLCertVerificationError):
            return errors.Untrusted(f'The certificate of the service at {settings.address} is not accepted: '
                                    f'{error.verify_message}. It must be signed by {settings.ca} and name '
                                    f"'{settings.expected_name}'")
        if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError, TimeoutError)):
            return errors.Unreachable(f'The service at {settings.address} does not answer: {error}')
        if isinstance(error, ssl.SSLError):
            reason = (error.reason or str(error)).replace('_', ' ').lower()
            if 'ALERT' in (error.reason or '') and any(word in error.reason for word in _REFUSALS):
                return errors.Untrusted(f'The service at {settings.address} refused the certificate '
                                        f'{settings.certificate}: {reason}. Its log says more')
            return errors.Untrusted(f'No TLS 1.3 session with the service at {settings.address}: {reason}')
        return errors.Unreachable(f'The service at {settings.address} cannot be reached: {error.strerror or error}')


def _context(settings: Settings) -> ssl.SSLContext:
    """Made for each connection, so that renewed certificates are taken up without a restart."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cafile=str(settings.ca))
    except OSError as error:
        raise errors.Untrusted(f'CA file {_told(settings.ca, error)}') from error
    try:
        context.load_cert_chain(str(settings.certificate), str(settings.key))
    except OSError as error:
        unreadable = next((path for path in (settings.certificate, settings.key) if not _readable(path)), None)
        raise errors.Untrusted(f'Certificate {_told(unreadable or settings.certificate, error)}'
                               f' (key {settings.key})') from error
    return context


def _readable(path: pathlib.Path) -> bool:
    try:
        with path.open('rb'):
            return True
    except OSError:
        return False


def _told(path: pathlib.Path, error: OSError) -> str:
    why = error.reason if isinstance(error, ssl.SSLError) and error.reason else error.strerror or str(error)
    return f'{path} cannot be used: {why}'
