"""Control operations in flight while polluxd is killed, and what must be there afterwards.

One thread makes, snapshots, clones, flattens, reverts, extends and deletes volumes. A call that the death of the
service cut off is repeated until it is answered, as Cinder does; what was answered is on record, and the next service
must have it.
"""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from pollux.rpc import PolluxService
from pollux.rpc.ttypes import ErrorCode, PolluxError, Provisioning, RequestContext, VolumeInfo, VolumeSpec
from pollux_testing import MIB, POOL, Polluxd
from thrift.transport.TTransport import TTransportException

_MAX_VOLUMES = 12
_SIZE = 16 * MIB
_GROWTH = 4 * MIB
# Answers that mean: not this, not now.
_REFUSALS = (ErrorCode.BUSY, ErrorCode.NO_SPACE)


@dataclass
class Known:
    """A volume or snapshot whose making was answered."""

    size: int
    snapshot: bool = False
    parent: str = ""


class Operations:
    """Runs in a thread from `start` to `stop`; `source` is the volume under load, which is never deleted."""

    def __init__(self, polluxd: Polluxd, source: str, source_size: int, seed: int) -> None:
        self.done = 0
        self.failure: BaseException | None = None
        self._polluxd = polluxd
        self._source = source
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._known = {source: Known(source_size)}
        self._in_flight: set[str] = set()
        self._kept = {source}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def verify(self) -> None:
        """What was answered is there, and nothing else but what is in flight."""
        # The thread's next call may change the list while it is read: compared is what was settled before and after.
        with self._lock, self._polluxd.calls() as service:
            page = service.volume_list(_context(), POOL, "", 0)
            found = {volume.volume_id: volume for volume in page.volumes}
            settled = {key: known for key, known in self._known.items() if key not in self._in_flight}
            unexpected = set(found) - set(self._known) - self._in_flight
        assert not unexpected, f"not made, or deleted: {unexpected}"
        missing = set(settled) - set(found)
        assert not missing, f"lost: {missing}"
        for key, known in settled.items():
            assert (found[key].size_bytes, found[key].snapshot) == (known.size, known.snapshot), key

    def adopt(self, snapshot: VolumeInfo) -> None:
        """A snapshot of the source that the test made; it is kept to the end."""
        with self._lock:
            self._known[snapshot.volume_id] = Known(snapshot.size_bytes, snapshot=True, parent=self._source)
            self._kept.add(snapshot.volume_id)

    def clear(self) -> None:
        """Delete all but the source; after `stop`."""
        for key in [key for key in self._known if key != self._source]:
            with self._polluxd.calls() as service:
                service.volume_delete(_context(), key)
            del self._known[key]

    # -- the thread

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._step()
        except BaseException as error:  # raised by stop(), in the test's own thread
            self.failure = error

    def _step(self) -> None:
        with self._lock:
            present = dict(self._known)
            kept = set(self._kept)
        volumes = [key for key, known in present.items() if not known.snapshot]
        snapshots = [key for key, known in present.items() if known.snapshot]
        spare = [key for key in volumes if key != self._source]
        new = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        if len(present) >= _MAX_VOLUMES:
            self._delete(self._random.choice([key for key in present if key not in kept]))
            return
        choice = self._random.randrange(6)
        if choice == 0 or not snapshots:
            self._snapshot(self._random.choice(volumes), new)
        elif choice == 1:
            self._clone(self._random.choice(snapshots), new)
        elif choice == 2 and spare:
            volume = self._random.choice(spare)
            self._call(set(), lambda service: service.volume_flatten(_context(), volume, new))
        elif choice == 3 and spare:
            self._extend(self._random.choice(spare))
        elif choice == 4 and spare:
            self._revert(snapshots)
        else:
            spec = VolumeSpec(new, new, _SIZE, Provisioning.THIN)
            if self._call({new}, lambda service: service.volume_create(_context(), POOL, spec)):
                self._settle(new, Known(_SIZE))

    def _snapshot(self, volume: str, new: str) -> None:
        if self._call({new}, lambda service: service.snapshot_create(_context(), volume, new, new)):
            self._settle(new, Known(self._known[volume].size, snapshot=True, parent=volume))

    def _clone(self, snapshot: str, new: str) -> None:
        spec = VolumeSpec(new, new, 0, Provisioning.THIN)
        if self._call({new}, lambda service: service.volume_clone(_context(), snapshot, spec)):
            self._settle(new, Known(self._known[snapshot].size))

    def _extend(self, volume: str) -> None:
        size = self._known[volume].size + _GROWTH
        if self._call({volume}, lambda service: service.volume_extend(_context(), volume, size)):
            self._settle(volume, Known(size))

    def _revert(self, snapshots: list[str]) -> None:
        mine = [
            key
            for key in snapshots
            if self._known[key].parent in self._known and self._known[key].parent != self._source
        ]
        if mine:
            snapshot = self._random.choice(mine)
            volume = self._known[snapshot].parent
            self._call(set(), lambda service: service.volume_revert(_context(), volume, snapshot))

    def _delete(self, key: str) -> None:
        if self._call({key}, lambda service: service.volume_delete(_context(), key)):
            self._settle(key, None)

    def _settle(self, key: str, known: Known | None) -> None:
        with self._lock:
            if known is None:
                del self._known[key]
            else:
                self._known[key] = known
            self._in_flight.clear()

    def _call(self, objects: set[str], call: Callable[[PolluxService.Client], object]) -> bool:
        """True when it was answered well. Objects stay in flight until they are settled; refused ones are as before."""
        with self._lock:
            self._in_flight = set(objects)
        while not self._stopping.is_set() or objects:
            error: PolluxError | None = None
            try:
                with self._polluxd.calls() as service:
                    call(service)
            except PolluxError as answered:
                error = answered
            except (TTransportException, OSError, EOFError):
                # Dead, or not back yet: the test brings it back.
                self._stopping.wait(0.01)
                continue
            if error is None:
                self.done += 1
                return True
            if error.code in _REFUSALS:
                with self._lock:
                    self._in_flight.clear()
                return False
            if error.code != ErrorCode.RETRY:
                raise RuntimeError(str(error))
        return False


def _context() -> RequestContext:
    return RequestContext(request_id="crash", deadline_ms=60_000)
