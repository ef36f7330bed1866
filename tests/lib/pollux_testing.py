"""A polluxd of the test's own: a pytest plugin with the fixture `polluxd`.

Use it with ``pytest_plugins = ["pollux_testing"]``; tests/lib must be on the path, which tests/run sees to.
The daemon under test is ``$POLLUXD``, else the one in the build folder ``$POLLUX_BUILD``. It speaks to the
daemon through the generated code of the contract alone, so that a fault of the Python package does not look
like one of the service.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from guest.machine import VhostUserDisk
from guest.timing import Deadline
from pki import Authority, Identity
from pollux.rpc import PolluxService
from pollux.rpc.ttypes import (
    AttachmentInfo,
    AttachSpec,
    BdevKind,
    BdevSpec,
    DataSocketSpec,
    PolluxError,
    PoolInfo,
    PoolSpec,
    Provisioning,
    RequestContext,
    Transport,
    VolumeInfo,
    VolumeSpec,
)
from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.transport.TSSLSocket import TSSLSocket
from thrift.transport.TTransport import TFramedTransport, TTransportException

MIB = 1 << 20
POOL = "pool"

_TRANSPORTS = {"scsi": Transport.SCSI, "blk": Transport.BLK}
_START_S = 30
_STOP_S = 30


# A refused connection is how a test finds out that the service is not up yet.
logging.getLogger("thrift.transport.TSocket").setLevel(logging.CRITICAL)


class ServiceDied(Exception):
    """polluxd ended when it was not asked to, or did not start; the text has the end of its log."""


class Polluxd:
    """A polluxd with one pool, which lives in a file of `folder`. The verbs below act as an admin."""

    def __init__(
        self,
        folder: Path,
        log: Path,
        *,
        pool_mb: int = 512,
        reactors: int = 2,
        abandoned_after_s: int = 60,
        host_id: str = "test-host",
        metrics: bool = False,
    ) -> None:
        self.folder = folder
        self.log = log
        # What the next start runs.
        self.binary = _binary()
        self.address = ("127.0.0.1", _free_port())
        metrics_address = f"127.0.0.1:{_free_port()}" if metrics else ""
        self.metrics_url = f"http://{metrics_address}/metrics" if metrics else None
        self.authority = Authority(folder / "certs")
        self.admin = self.authority.issue("tester", "admin")
        # As /run: it outlives the service, not the host.
        self.memory = Path(tempfile.mkdtemp(prefix="pollux-", dir="/dev/shm"))
        weakref.finalize(self, shutil.rmtree, self.memory, ignore_errors=True)
        self.config = folder / "polluxd.toml"
        self._pool_mb = pool_mb
        self._process: subprocess.Popen[bytes] | None = None
        server = self.authority.issue("server")
        self.config.write_text(
            f"""
[service]
host_id = "{host_id}"
state_dir = "{folder}/state"
runtime_dir = "{folder}/run"
memory_dir = "{self.memory}"
log_level = "debug"

[reactors]
count = {reactors}

[memory]
hugepages = "off"

[control]
listen = "{self.address[0]}:{self.address[1]}"
ca = "{self.authority.certificate}"
certificate = "{server.certificate}"
key = "{server.key}"

[metrics]
listen = "{metrics_address}"

[data]
abandoned_after_s = {abandoned_after_s}
"""
        )

    # -- the process

    def start(self) -> None:
        """Start it and return when it answers calls."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", str(self.binary), "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        deadline = Deadline(_START_S)
        while not self._answers():
            if self._process.poll() is not None or deadline.expired():
                status = self._process.poll()
                self._process.kill()
                self._process.wait()
                self._process = None
                raise ServiceDied(f"polluxd did not start (status {status}):\n{self._log_tail()}")
            time.sleep(0.02)

    def runs(self) -> int:
        """The inode of the program that is running."""
        return os.stat(f"/proc/{self._process_or_raise().pid}/exe").st_ino

    @property
    def pid(self) -> int:
        return self._process_or_raise().pid

    def kill(self) -> None:
        """SIGKILL, as a crash of the process."""
        self._require_alive()
        self._process_or_raise().kill()
        self._process_or_raise().wait(_STOP_S)
        self._process = None

    def cut_power(self) -> None:
        """SIGKILL, and what the host had in memory is gone. What its disks lose is for the test to do."""
        self.kill()
        for path in self.memory.iterdir():
            path.unlink()

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        self._require_alive()
        process = self._process_or_raise()
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise ServiceDied(f"polluxd did not stop within {_STOP_S} s:\n{self._log_tail()}") from None
        finally:
            self._process = None

    def wait_for_end(self) -> int:
        """Of one that ends by itself, or was told to: its exit status."""
        status = self._process_or_raise().wait(_STOP_S)
        self._process = None
        return status

    def close(self) -> None:
        """Stop it if it runs. Raises ServiceDied when it had ended by itself or ends badly now."""
        if self._process is not None:
            status = self.stop()
            if status != 0:
                raise ServiceDied(f"polluxd ended with {status}:\n{self._log_tail()}")

    # -- calls

    @contextmanager
    def calls(self, identity: Identity | None = None) -> Iterator[PolluxService.Client]:
        """A connection as `identity`, by default as an admin."""
        who = identity or self.admin
        context = ssl.create_default_context(cafile=str(self.authority.certificate))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(who.certificate, who.key)
        secure = TSSLSocket(*self.address, ssl_context=context, server_hostname=self.address[0])
        secure.setTimeout(60_000)
        transport = TFramedTransport(secure)
        transport.open()
        try:
            yield PolluxService.Client(TBinaryProtocol(transport))
        finally:
            transport.close()

    def create_pool(self, name: str = POOL, *, device: Path | str = "", folder: Path | None = None) -> PoolInfo:
        """The pool, on a block device or else in a file of `folder`, by default its own."""
        file = (str((folder or self.folder) / f"{name}.img"), self._pool_mb * MIB)
        bdev = BdevSpec(BdevKind.URING, *((str(device), 0) if device else file))
        with self.calls() as service:
            return service.pool_create(_context(), PoolSpec(_new_id(), name, bdev))

    def describe_pool(self) -> PoolInfo:
        with self.calls() as service:
            return service.pool_describe(_context(), POOL)

    def create_volume(
        self, size_bytes: int, *, pool: str = POOL, thick: bool = False, block_bytes: int | None = None
    ) -> VolumeInfo:
        volume_id = _new_id()
        kind = Provisioning.THICK if thick else Provisioning.THIN
        with self.calls() as service:
            spec = VolumeSpec(volume_id, f"volume-{volume_id}", size_bytes, kind, block_bytes)
            return service.volume_create(_context(), pool, spec)

    def describe_volume(self, volume_id: str) -> VolumeInfo:
        with self.calls() as service:
            return service.volume_describe(_context(), volume_id)

    def extend(self, volume_id: str, size_bytes: int) -> VolumeInfo:
        with self.calls() as service:
            return service.volume_extend(_context(), volume_id, size_bytes)

    def snapshot(self, volume_id: str) -> VolumeInfo:
        snapshot_id = _new_id()
        with self.calls() as service:
            return service.snapshot_create(_context(), volume_id, snapshot_id, f"snapshot-{snapshot_id}")

    def clone(self, snapshot_id: str) -> VolumeInfo:
        volume_id = _new_id()
        with self.calls() as service:
            spec = VolumeSpec(volume_id, f"volume-{volume_id}", 0, Provisioning.THIN)
            return service.volume_clone(_context(), snapshot_id, spec)

    def delete(self, volume_id: str) -> None:
        with self.calls() as service:
            service.volume_delete(_context(), volume_id)

    def attach(
        self,
        volume_id: str,
        transport: str,
        *,
        client: str = "",
        queues: int = 2,
        read_only: bool = False,
        names: int | None = None,
    ) -> AttachmentInfo:
        """Attach for the guest `client`; by default for a guest that has no other volume."""
        spec = AttachSpec(_new_id(), volume_id, client or _new_id(), _TRANSPORTS[transport], queues, read_only, names)
        with self.calls() as service:
            return service.attach(_context(), spec)

    def is_connected(self, attachment_id: str) -> bool:
        """Whether a front end is connected to the attachment's socket."""
        with self.calls() as service:
            attachments = service.attachment_list(_context(), "", "")
        return any(each.connected for each in attachments if each.attachment_id == attachment_id)

    def detach(self, attachment_id: str) -> None:
        with self.calls() as service:
            service.detach(_context(), attachment_id)

    def try_detach(self, attachment_id: str) -> PolluxError | None:
        """Detach; with what the service refuses it."""
        try:
            self.detach(attachment_id)
        except PolluxError as refusal:
            return refusal
        return None

    @contextmanager
    def image_of(self, volume_id: str, *, read_only: bool = True) -> Iterator[str]:
        """The URL of a volume's or snapshot's NBD socket, for qemu-img and friends."""
        socket_id = _new_id()
        with self.calls() as service:
            opened = service.data_open(_context(), DataSocketSpec(socket_id, volume_id, read_only))
            yield f"nbd+unix:///{opened.export_name}?socket={opened.path}"
            service.data_close(_context(), socket_id)

    def write_image(self, volume_id: str, image: Path) -> None:
        """Copy a raw image into a volume through the service's NBD socket."""
        with self.image_of(volume_id, read_only=False) as url:
            subprocess.run(
                ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(image), url],
                check=True,
                timeout=300,
            )

    # -- inside

    def _answers(self) -> bool:
        try:
            with self.calls() as service:
                service.describe(_context())
        except (TTransportException, OSError):
            return False
        return True

    def _process_or_raise(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServiceDied("polluxd is not running")
        return self._process

    def _require_alive(self) -> None:
        status = self._process_or_raise().poll()
        if status is not None:
            self._process = None
            raise ServiceDied(f"polluxd ended by itself with {status}:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-30:]
        return "\n".join([f"({self.log})", *lines])


def disk_of(attachment: AttachmentInfo, *, boot: bool = False) -> VhostUserDisk:
    """The device that a guest needs for `attachment`."""
    return VhostUserDisk(
        Path(attachment.socket_path),
        "scsi" if attachment.transport == Transport.SCSI else "blk",
        queues=attachment.queues,
        boot=boot,
        boot_target=attachment.target or 0,
    )


@pytest.fixture
def polluxd(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Polluxd]:
    """A running polluxd with an empty pool in a file. The test fails when it dies or ends badly."""
    logs = Path(os.environ.get("POLLUX_TEST_LOGS", str(tmp_path)))
    name = request.node.name.replace("/", "-")
    # Paths of UNIX sockets are short; those of pytest's folders are not.
    with tempfile.TemporaryDirectory(prefix="pollux-") as folder:
        service = Polluxd(Path(folder), logs / f"polluxd-{name}.log")
        try:
            service.start()
            service.create_pool()
            yield service
        finally:
            service.close()


def _binary() -> Path:
    configured = os.environ.get("POLLUXD")
    if configured:
        return Path(configured)
    return Path(os.environ["POLLUX_BUILD"]) / "service" / "polluxd"


def _context() -> RequestContext:
    return RequestContext(request_id=f"req-{_new_id()}", deadline_ms=60_000)


def _new_id() -> str:
    return str(uuid.uuid4())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
