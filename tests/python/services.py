"""A polluxd with a pool in memory, and clients of each role."""

from __future__ import annotations

import uuid
from typing import Any

from pki import Identity
from pollux.client import Client, Settings
from pollux.rpc import ttypes as rpc
from pollux_testing import MIB, Polluxd

GIB = 1 << 30
POOL = "memory"
POOL_BYTES = 256 * MIB
COMPUTE_HOST = "compute-1"
_CLIENTS_KEPT = 100


class Service:
    """A polluxd and ways to reach it. Its pool is empty again after each kill: it is in memory."""

    def __init__(self, polluxd: Polluxd) -> None:
        self.polluxd = polluxd
        self.identities = {
            "admin": polluxd.admin,
            "cinder": polluxd.authority.issue("cinder-1", "cinder"),
            "compute": polluxd.authority.issue(COMPUTE_HOST, "compute"),
            "reader": polluxd.authority.issue("reader-1", "reader"),
        }
        self._clients: list[Client] = []

    @property
    def address(self) -> str:
        return "{}:{}".format(*self.polluxd.address)

    def settings(self, who: str | Identity = "admin", **changes: Any) -> Settings:
        identity = self.identities[who] if isinstance(who, str) else who
        values = {
            "address": self.address,
            "ca": self.polluxd.authority.certificate,
            "certificate": identity.certificate,
            "key": identity.key,
        }
        return Settings(**{**values, **changes})

    def client(self, who: str | Identity = "admin", **changes: Any) -> Client:
        client = Client(self.settings(who, **changes))
        self._clients.append(client)
        # The service has a limit of connections, and a test rarely uses a client of one long before it. One that it
        # does use connects again.
        if len(self._clients) > _CLIENTS_KEPT:
            self._clients[-_CLIENTS_KEPT - 1].close()
        return client

    def environment(self, who: str = "admin") -> dict[str, str]:
        """By which polluxctl finds the service."""
        settings = self.settings(who)
        return {
            "POLLUX_ADDRESS": settings.address,
            "POLLUX_CA": str(settings.ca),
            "POLLUX_CERTIFICATE": str(settings.certificate),
            "POLLUX_KEY": str(settings.key),
        }

    def create_pool(self, name: str = POOL, size_bytes: int = POOL_BYTES) -> rpc.PoolInfo:
        bdev = rpc.BdevSpec(kind=rpc.BdevKind.RAM, size_bytes=size_bytes)
        return self.client().pool_create(rpc.PoolSpec(pool_id=new_id(), name=name, bdev=bdev))

    def create_volume(self, size_bytes: int = GIB, pool: str = POOL) -> rpc.VolumeInfo:
        volume_id = new_id()
        return self.client("cinder").volume_create(pool, volume_spec(volume_id, size_bytes))

    def log_text(self) -> str:
        return self.polluxd.log.read_text(errors="replace")

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.polluxd.close()


def new_id() -> str:
    return str(uuid.uuid4())


def volume_spec(volume_id: str, size_bytes: int = GIB, *, thick: bool = False) -> rpc.VolumeSpec:
    kind = rpc.Provisioning.THICK if thick else rpc.Provisioning.THIN
    return rpc.VolumeSpec(volume_id=volume_id, name=f"volume-{volume_id}", size_bytes=size_bytes, provisioning=kind)
