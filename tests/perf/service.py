"""A polluxd of the benchmark's own, and calls to it over one connection."""

from __future__ import annotations

import logging
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.request
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pki import Authority
from pollux.rpc import PolluxService
from pollux.rpc.ttypes import (
    AttachmentInfo,
    AttachSpec,
    BdevKind,
    BdevSpec,
    JobState,
    PoolSpec,
    Provisioning,
    RequestContext,
    Transport,
    VolumeSpec,
)
from thrift.protocol.TBinaryProtocol import TBinaryProtocolAccelerated
from thrift.transport.TSSLSocket import TSSLSocket
from thrift.transport.TTransport import TFramedTransport, TTransportException

from perf.process import CHILD, Counters, favour, unfavour

MIB = 1 << 20
_START_S = 120
# A refused connection is how it is found out that the service is not up yet.
logging.getLogger("thrift.transport.TSocket").setLevel(logging.CRITICAL)
_TRANSPORTS = {"scsi": Transport.SCSI, "blk": Transport.BLK}


def new_id() -> str:
    return str(uuid.uuid4())


class Service:
    """A polluxd on the loopback address with its state in `folder`; `sockets` is a folder with a short path."""

    def __init__(
        self,
        build: Path,
        folder: Path,
        sockets: Path,
        cores: tuple[int, ...],
        resume_latency_us: int | None,
        *,
        favoured: bool = True,
    ) -> None:
        folder.mkdir()
        self.folder = folder
        self.log = folder / "polluxd.log"
        self._before = favour if favoured else unfavour
        self._binary = build / "service" / "polluxd"
        self._port, self._metrics = _free_ports(2)
        authority = Authority(folder / "certs")
        self._ca = authority.certificate
        self._admin = authority.issue("perf", "admin")
        server = authority.issue("server")
        # As /run: first writes are answered at once only with memory that outlives the service.
        memory = Path(tempfile.mkdtemp(prefix="pollux-perf-", dir="/dev/shm"))
        weakref.finalize(self, shutil.rmtree, memory, ignore_errors=True)
        self._config = folder / "polluxd.toml"
        self._config.write_text(
            f"""
[service]
host_id = "perf"
state_dir = "{folder}/state"
runtime_dir = "{sockets}"
memory_dir = "{memory}"
log_level = "warn"
[reactors]
cores = {list(cores)}
{"" if resume_latency_us is None else f"resume_latency_us = {resume_latency_us}"}
[memory]
hugepages = "off"
[control]
listen = "127.0.0.1:{self._port}"
ca = "{self._ca}"
certificate = "{server.certificate}"
key = "{server.key}"
[metrics]
listen = "127.0.0.1:{self._metrics}"
"""
        )
        self._process: subprocess.Popen[bytes] | None = None

    # -- the process

    def start(self) -> float:
        """Start it; the seconds until the control port answered."""
        begin = time.monotonic()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*CHILD, str(self._binary), "--config", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=self._before,
            )
        while True:
            try:
                self.connect()
                self.rpc.describe(self.context())
                return time.monotonic() - begin
            except (OSError, TTransportException):
                if self._process.poll() is not None or time.monotonic() - begin > _START_S:
                    tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
                    raise RuntimeError(f"polluxd did not start:\n{tail}") from None
                time.sleep(0.01)

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def kill(self) -> None:
        """As a crash."""
        assert self._process
        self._process.kill()
        self._process.wait(30)

    def close(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(60)

    def counters(self) -> Counters:
        page = self._page()
        names = ("pollux_reactor_busy_cycles_total", "pollux_reactor_loops_total", "pollux_reactor_busy_loops_total")
        return Counters(*(_sum(page, name) for name in names))

    def heap_used_bytes(self) -> float:
        """Of the heap that polluxd took at its start."""
        return _sum(self._page(), "pollux_memory_heap_used_bytes")

    @contextmanager
    def turn(self) -> Iterator[None]:
        yield

    # -- calls

    @property
    def rpc(self) -> PolluxService.Client:
        return self._client

    @staticmethod
    def context() -> RequestContext:
        return RequestContext(request_id=new_id(), deadline_ms=600_000)

    def ram_pool(self, name: str, size_bytes: int, *, discard: bool = True) -> None:
        """Without discard, what is freed stays with the pool, as memory that was touched."""
        bdev = BdevSpec(BdevKind.RAM, size_bytes=size_bytes)
        self.rpc.pool_create(self.context(), PoolSpec(new_id(), name, bdev, discard=discard))

    def file_pool(self, name: str, size_bytes: int) -> Path:
        path = self.folder / f"{name}.img"
        bdev = BdevSpec(BdevKind.URING, str(path), size_bytes)
        self.rpc.pool_create(self.context(), PoolSpec(new_id(), name, bdev))
        return path

    def device_pool(self, name: str, path: str) -> None:
        """On a file or block device that is there. What is freed stays with the pool."""
        bdev = BdevSpec(BdevKind.URING, path)
        self.rpc.pool_create(self.context(), PoolSpec(new_id(), name, bdev, overwrite=True, discard=False))

    def volume(self, pool: str, size_bytes: int, *, thick: bool = False) -> str:
        volume_id = new_id()
        kind = Provisioning.THICK if thick else Provisioning.THIN
        self.rpc.volume_create(self.context(), pool, VolumeSpec(volume_id, volume_id, size_bytes, kind))
        return volume_id

    def snapshot(self, volume_id: str) -> str:
        snapshot_id = new_id()
        self.rpc.snapshot_create(self.context(), volume_id, snapshot_id, snapshot_id)
        return snapshot_id

    def clone(self, snapshot_id: str) -> str:
        volume_id = new_id()
        spec = VolumeSpec(volume_id, volume_id, 0, Provisioning.THIN)
        self.rpc.volume_clone(self.context(), snapshot_id, spec)
        return volume_id

    def delete(self, volume_id: str) -> None:
        self.rpc.volume_delete(self.context(), volume_id)

    def attach(self, volume_id: str, transport: str = "scsi", queues: int = 1) -> AttachmentInfo:
        """For a guest of its own."""
        spec = AttachSpec(new_id(), volume_id, new_id(), _TRANSPORTS[transport], queues, False)
        return self.rpc.attach(self.context(), spec)

    def detach(self, attachment_id: str) -> None:
        self.rpc.detach(self.context(), attachment_id)

    def free_bytes(self, pool: str) -> int:
        free: int = self.rpc.pool_describe(self.context(), pool).free_bytes
        return free

    def running_jobs(self) -> int:
        return sum(job.state == JobState.RUNNING for job in self.rpc.job_list(self.context()))

    def wait_for_jobs(self, limit_s: float = 60) -> None:
        """Until what was deleted has given its space back."""
        deadline = time.monotonic() + limit_s
        while self.running_jobs():
            if time.monotonic() > deadline:
                raise RuntimeError(f"jobs still run after {limit_s} s")
            time.sleep(0.02)

    def connect(self) -> None:
        """Also in a child of this process, which must not use the connection of its parent."""
        context = ssl.create_default_context(cafile=str(self._ca))
        context.load_cert_chain(self._admin.certificate, self._admin.key)
        secure = TSSLSocket("127.0.0.1", self._port, ssl_context=context, server_hostname="127.0.0.1")
        secure.setTimeout(600_000)
        transport = TFramedTransport(secure)
        transport.open()
        self._client = PolluxService.Client(TBinaryProtocolAccelerated(transport))

    # -- inside

    def _page(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics}/metrics", timeout=30) as page:
            text: str = page.read().decode()
            return text


def _sum(page: str, name: str) -> float:
    lines = (line for line in page.splitlines() if line.startswith((name + "{", name + " ")))
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
