"""Things that go wrong between client and service, made on purpose."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from pki import Identity
from pollux.rpc import PolluxService
from pollux.rpc import ttypes as rpc
from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.transport.TTransport import TMemoryBuffer


class Link:
    """A TCP relay in front of a service, which can lose answers. It passes TLS on as it is."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lose = threading.Event()
        self.address = "{}:{}".format(*self._listener.getsockname())
        self.connections = 0
        self.lost = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def lose_next_answer(self) -> None:
        """Break the connection in place of passing on what the service says next."""
        self._lose.set()

    def close(self) -> None:
        # close() alone does not end an accept() that waits.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as service:
            back = threading.Thread(target=self._answers, args=(service, client), daemon=True)
            back.start()
            with contextlib.suppress(OSError):
                while data := client.recv(65536):
                    service.sendall(data)
            with contextlib.suppress(OSError):
                service.shutdown(socket.SHUT_RDWR)
            back.join(30)

    def _answers(self, service: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := service.recv(65536):
                if self._lose.is_set():
                    self._lose.clear()
                    self.lost += 1
                    break
                client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def silent_listener() -> Iterator[str]:
    """The address of somebody who accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    kept.append(listener.accept()[0])

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield "{}:{}".format(*listener.getsockname())
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        for one in kept:
            one.close()


class Refusing:
    """Answers as a service that cannot do it now, `times` times, and then with its description."""

    def __init__(self, times: int) -> None:
        self._times = times
        self.asked: list[str] = []

    def describe(self, ctx: rpc.RequestContext) -> rpc.ServiceInfo:
        self.asked.append(ctx.request_id)
        if len(self.asked) <= self._times:
            raise rpc.PolluxError(rpc.ErrorCode.RETRY, "another change is under way")
        return rpc.ServiceInfo("fake", "0", 1, set(), 0, 1)

    def answer(self, request: bytes) -> bytes:
        """A frame for a frame."""
        output = TMemoryBuffer()
        PolluxService.Processor(self).process(TBinaryProtocol(TMemoryBuffer(request)), TBinaryProtocol(output))
        content: bytes = output.getvalue()
        return struct.pack("!I", len(content)) + content


@contextlib.contextmanager
def speaking(answer: Callable[[bytes], bytes], identity: Identity, ca: Path) -> Iterator[str]:
    """The address of a TLS server with this certificate that answers each frame with what `answer` returns."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate, identity.key)
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_REQUIRED

    def serve(plain: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as secure:
            stream = secure.makefile("rb")
            while header := stream.read(4):
                secure.sendall(answer(stream.read(struct.unpack("!I", header)[0])))

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield "{}:{}".format(*listener.getsockname())
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
