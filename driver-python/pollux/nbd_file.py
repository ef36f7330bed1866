"""A volume behind an NBD socket as a file of Python: for OpenStack's generic copies, which take a path or a file.

NBD protocol, doc/proto.md: fixed newstyle negotiation with NBD_OPT_GO, simple replies. One request at a time.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

_MAGIC, _OPTION_MAGIC, _OPTION_REPLY_MAGIC = 0x4E42444D41474943, 0x49484156454F5054, 0x0003E889045565A9
_REQUEST_MAGIC, _REPLY_MAGIC = 0x25609513, 0x67446698
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPTION_GO = 7
_REPLY_ACK, _REPLY_INFO, _REPLY_ERROR = 1, 3, 1 << 31
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
_READ, _WRITE, _DISCONNECT, _FLUSH, _WRITE_ZEROES = 0, 1, 2, 3, 6
_CAN_READ_ONLY, _CAN_FLUSH, _CAN_WRITE_ZEROES = 1 << 1, 1 << 2, 1 << 6
#: Well below what servers take in one request.
_PIECE = 1 << 20
_LONGEST_TEXT = 4096
#: What a server may insist on that does not say.
_BLOCK = 512


class NbdFile(io.RawIOBase):
    """Reads and writes the whole volume. Not for two threads at a time to read or write at one position."""

    def __init__(self, path: str, export: str, *, timeout_s: float, on_close: Callable[[], None]) -> None:
        """Connect to the UNIX socket `path`. `on_close` is called once, after the last byte was flushed.

        Raises OSError.
        """
        self._position = 0
        self._cookie = 0
        self._block = _BLOCK
        self._lock = threading.Lock()
        self._on_close: Callable[[], None] | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(path)
            self.size, self._flags = self._negotiate(export.encode())
        except BaseException:
            self._socket.close()
            raise
        self._on_close = on_close

    # ------------------------------------------------------------------ what a file has

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return not self._flags & _CAN_READ_ONLY

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, 'before the beginning of the volume')
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        with memoryview(buffer).cast('B') as view:
            done = max(0, min(len(view), self.size - self._position))
            view[:done] = self._read(self._position, done)
        self._position += done
        return done

    def write(self, data: Any) -> int:
        """All of it, or an OSError: ENOSPC when the volume ends or its pool is full."""
        with memoryview(data).cast('B') as view:
            done = len(view)
            if self._position + done > self.size:
                raise OSError(errno.ENOSPC, f'the volume ends at {self.size} bytes')
            begin, end = self._blocks(self._position, done)
            if (begin, end) == (self._position, self._position + done):
                self._write(begin, view)
            else:
                whole = bytearray(self._read(begin, end - begin))
                whole[self._position - begin:self._position - begin + done] = view
                self._write(begin, memoryview(whole))
        self._position += done
        return done

    def flush(self) -> None:
        if not self.closed and self.writable() and self._flags & _CAN_FLUSH:
            self._request(_FLUSH, 0, 0)

    def close(self) -> None:
        """Flush, disconnect, and tell the service. Raises what goes wrong; the file is closed all the same."""
        if self.closed or self._on_close is None:
            return
        on_close, self._on_close = self._on_close, None
        with contextlib.ExitStack() as stack:
            stack.callback(on_close)
            stack.callback(self._socket.close)
            try:
                self.flush()
                self._send(_DISCONNECT, 0, 0)
            finally:
                # Flushes nothing more: what was to flush is flushed, or has failed above.
                self._flags &= ~_CAN_FLUSH
                super().close()

    # ------------------------------------------------------------------ whole blocks

    def _blocks(self, offset: int, length: int) -> tuple[int, int]:
        """The whole blocks that hold a range: the server takes nothing less."""
        return offset // self._block * self._block, -(-(offset + length) // self._block) * self._block

    def _read(self, offset: int, length: int) -> bytes:
        begin, end = self._blocks(offset, length)
        got = b''.join(self._request(_READ, at, min(_PIECE, end - at)) for at in range(begin, end, _PIECE))
        return got[offset - begin:offset - begin + length]

    def _write(self, offset: int, data: memoryview) -> None:
        for start in range(0, len(data), _PIECE):
            piece = bytes(data[start:start + _PIECE])
            # Zeros take no space in a thin volume unless they are written as data.
            if self._flags & _CAN_WRITE_ZEROES and piece.count(0) == len(piece):
                self._request(_WRITE_ZEROES, offset + start, len(piece))
            else:
                self._request(_WRITE, offset + start, len(piece), piece)

    # ------------------------------------------------------------------ the protocol

    def _negotiate(self, export: bytes) -> tuple[int, int]:
        """Size and transmission flags of the export."""
        magic, option_magic, flags = struct.unpack('!QQH', self._receive(18))
        if (magic, option_magic) != (_MAGIC, _OPTION_MAGIC) or not flags & _FIXED_NEWSTYLE:
            raise OSError(errno.EPROTO, 'this is no NBD server of the fixed newstyle')
        self._socket.sendall(struct.pack('!I', _FIXED_NEWSTYLE | flags & _NO_ZEROES))
        body = struct.pack('!I', len(export)) + export + struct.pack('!HH', 1, _INFO_BLOCK_SIZE)
        self._socket.sendall(struct.pack('!QII', _OPTION_MAGIC, _OPTION_GO, len(body)) + body)
        found: tuple[int, int] | None = None
        while True:
            magic, option, kind, length = struct.unpack('!QIII', self._receive(20))
            if magic != _OPTION_REPLY_MAGIC or option != _OPTION_GO or length > _LONGEST_TEXT:
                raise OSError(errno.EPROTO, 'the answer to NBD_OPT_GO cannot be read')
            content = self._receive(length)
            if kind & _REPLY_ERROR:
                raise OSError(errno.ENXIO, f'the export is refused: {content.decode(errors="replace") or hex(kind)}')
            if kind == _REPLY_INFO and length == 12 and content[:2] == struct.pack('!H', _INFO_EXPORT):
                size, export_flags = struct.unpack('!QH', content[2:])
                found = size, export_flags
            if kind == _REPLY_INFO and length == 14 and content[:2] == struct.pack('!H', _INFO_BLOCK_SIZE):
                self._block = max(1, struct.unpack('!I', content[2:6])[0])
            if kind == _REPLY_ACK:
                if found is None:
                    raise OSError(errno.EPROTO, 'the export has no size')
                return found

    def _request(self, command: int, offset: int, length: int, data: bytes = b'') -> bytes:
        with self._lock:
            self._send(command, offset, length, data)
            magic, error, cookie = struct.unpack('!IIQ', self._receive(16))
            if magic != _REPLY_MAGIC or cookie != self._cookie:
                raise OSError(errno.EPROTO, 'the answer belongs to no request')
            if error:
                raise OSError(error, os.strerror(error))
            return self._receive(length) if command == _READ else b''

    def _send(self, command: int, offset: int, length: int, data: bytes = b'') -> None:
        self._cookie += 1
        self._socket.sendall(struct.pack('!IHHQQI', _REQUEST_MAGIC, 0, command, self._cookie, offset, length) + data)

    def _receive(self, size: int) -> bytes:
        got = bytearray()
        while len(got) < size:
            part = self._socket.recv(size - len(got))
            if not part:
                raise OSError(errno.ECONNRESET, 'the service closed the NBD connection')
            got += part
        return bytes(got)
