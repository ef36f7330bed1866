"""Pools that are exported, imported and checked while volumes of them are made and deleted, over the control port."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pollux import errors
from pollux.client import Client
from pollux.rpc import ttypes as rpc

from python.services import Service, new_id, volume_spec

MIB = 1 << 20
POOL = "busy"
SECONDS = 60 if os.environ.get("POLLUX_TEST_LEVEL") == "full" else 8
# No call takes nearly as long. The client repeats what answers RETRY, so an error of that kind is a call that hangs.
DEADLINE_MS = 60_000


class Changes(threading.Thread):
    """Makes and deletes volumes and snapshots until it is told to stop; what it may not be answered is in `wrong`."""

    def __init__(self, client: Client, stop: threading.Event) -> None:
        super().__init__()
        self.client, self.stop_asked = client, stop
        self.made = 0
        self.wrong: list[Exception] = []

    def attempt(self, call: Callable[..., Any], *arguments: Any) -> bool:
        try:
            call(*arguments)
        except (errors.NotFound, errors.Busy):
            return False
        except Exception as error:
            self.wrong.append(error)
            return False
        return True

    def run(self) -> None:
        while not self.stop_asked.is_set() and not self.wrong:
            volume, snapshot, clone = new_id(), new_id(), new_id()
            self.made += self.attempt(self.client.volume_create, POOL, volume_spec(volume, 16 * MIB))
            self.attempt(self.client.snapshot_create, volume, snapshot, f"snapshot-{snapshot}")
            self.attempt(self.client.volume_clone, snapshot, volume_spec(clone, 16 * MIB))
            for each in (clone, snapshot, volume):
                self.attempt(self.client.volume_delete, each)


def check_to_its_end(client: Client) -> rpc.PoolCheck:
    check = client.pool_check(POOL, new_id())
    end = time.monotonic() + DEADLINE_MS / 1000
    while check.state == rpc.JobState.RUNNING:
        assert time.monotonic() < end, "a check hangs"
        time.sleep(0.01)
        check = client.pool_check_describe(check.check_id)
    return check


def test_a_pool_is_exported_imported_and_checked_under_changes(own_service: Service, tmp_path: Path) -> None:
    client = own_service.client(deadline_ms=DEADLINE_MS)
    bdev = rpc.BdevSpec(kind=rpc.BdevKind.URING, path=str(tmp_path / "pool.img"), size_bytes=64 * MIB)
    client.pool_create(rpc.PoolSpec(pool_id=new_id(), name=POOL, bdev=bdev, cluster_bytes=64 << 10))
    stop = threading.Event()
    changes = [Changes(own_service.client(deadline_ms=DEADLINE_MS), stop) for _ in range(4)]
    for thread in changes:
        thread.start()
    exported = checked = 0
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and not any(thread.wrong for thread in changes):
        # The check closes the pool and opens it again by itself.
        with contextlib.suppress(errors.Busy):
            done = check_to_its_end(client)
            assert (done.state, done.error) == (rpc.JobState.DONE, None)
            assert done.lost + done.doubly_used + done.leaked + done.damaged == 0, done.findings
            checked += 1
        with contextlib.suppress(errors.Busy):
            client.pool_export(POOL)
            exported += 1
        client.pool_import(rpc.BdevSpec(kind=rpc.BdevKind.URING, path=bdev.path))
    stop.set()
    for thread in changes:
        thread.join(10 * DEADLINE_MS / 1000)
        assert not thread.is_alive(), "a call hangs"
        assert thread.wrong == []
    print(f"{exported} exports, {checked} checks, {sum(thread.made for thread in changes)} volumes")
    assert exported > 2
    assert checked > 2
    assert sum(thread.made for thread in changes) > 10
    # What is left of deletes goes on, and nothing keeps the service from ending.
    assert own_service.polluxd.stop() == 0
    own_service.polluxd.start()
