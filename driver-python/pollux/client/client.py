"""`Client`: the calls of the contract, with TLS, deadlines and retries taken care of.

Every call of the contract may be repeated, so a call is repeated here when the connection broke or the service said
RETRY: with growing, jittered pauses until the call's deadline, or for `connect_ms` when nobody answers at all.

A client may be shared by threads and by green threads. A connection belongs to the one call that uses it; idle ones
wait in a list, and the lock around that list is held for no longer than taking one out or putting one back.
"""

from __future__ import annotations

import os
import random
import struct
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.protocol.TProtocol import TProtocolException
from thrift.Thrift import TApplicationException
from thrift.transport.TTransport import TTransportException

from pollux import errors
from pollux.client import settings as client_settings
from pollux.client.settings import Settings
from pollux.client.transport import Connection
from pollux.rpc import PolluxService
from pollux.rpc import ttypes as types

_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0
#: Idle connections that are kept, and for how long; the service drops idle ones later than that.
_KEEP = 8
_KEEP_S = 60.0
#: What the service may need beyond the deadline it was told, to say so.
_GRACE_S = 2.0


class Client:
    """Speaks to one polluxd. Every method raises the classes of pollux.errors and nothing else."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._idle: list[tuple[float, Connection]] = []
        self._pid = os.getpid()

    @classmethod
    def load(cls, given: Mapping[str, Any] | None = None) -> Client:
        """From options, environment and file, see pollux.client.settings. Connects at the first call."""
        return cls(client_settings.load(given))

    def close(self) -> None:
        with self._lock:
            dropped, self._idle = self._idle, []
        for _, connection in dropped:
            connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()

    # ------------------------------------------------------------------ how a call is made

    def call(self, name: str, *arguments: Any, request_id: str | None = None, deadline_ms: int | None = None) -> Any:
        """Call `name` of the contract. The context comes by itself; a request id is made up when none is given."""
        request = request_id or f'req-{uuid.uuid4()}'
        end = time.monotonic() + (deadline_ms or self.settings.deadline_ms) / 1000
        reachable_until = min(end, time.monotonic() + self.settings.connect_ms / 1000)
        pause = _FIRST_PAUSE_S
        while True:
            try:
                return self._attempt(name, arguments, request, end, reachable_until)
            except errors.Unreachable as error:
                failure: errors.PolluxError = error
                now = time.monotonic()
                if error.stale or (error.spoke and now >= reachable_until):
                    # It broke while idle or in the middle of a long call: a restart has its full time from here.
                    reachable_until = min(end, now + self.settings.connect_ms / 1000)
                if error.stale and now < end:
                    continue
                give_up = reachable_until
            except errors.Retry as error:
                failure = error
                give_up = end
                # It answers: from here on it may restart and be away again.
                reachable_until = min(end, time.monotonic() + self.settings.connect_ms / 1000)
            wait = pause * random.uniform(0.5, 1.5)  # noqa: S311  jitter, no secret
            if time.monotonic() + wait >= give_up:
                raise failure
            time.sleep(wait)
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    def _attempt(self, name: str, arguments: tuple[Any, ...], request: str, end: float, reachable_until: float) -> Any:
        connection = self._take(reachable_until)
        reused, connection.used = connection.used, True
        left_s = end - time.monotonic()
        connection.deadline = end + _GRACE_S
        context = types.RequestContext(request_id=request, deadline_ms=max(1, int(left_s * 1000)))
        service = PolluxService.Client(TBinaryProtocol(connection))
        try:
            answer = getattr(service, name)(context, *arguments)
        except types.PolluxError as error:
            self._put_back(connection)
            raise errors.from_service(error) from None
        except errors.Unreachable as error:
            connection.close()
            error.spoke, error.stale = True, reused
            raise
        except errors.PolluxError:
            connection.close()
            raise
        except TApplicationException as error:
            connection.close()
            if error.type == TApplicationException.UNKNOWN_METHOD:
                raise errors.Unsupported(f'The service at {self.settings.address} does not know the call {name}: '
                                         'it is older than this client') from error
            raise errors.Internal(f'{name}: {error}') from error
        except (TProtocolException, TTransportException, EOFError, ValueError, struct.error) as error:
            connection.close()
            raise errors.Internal(f'{name}: the answer of {self.settings.address} cannot be read: {error}') from error
        except BaseException:
            # Interrupted in the middle (a green thread may be killed): what the wire holds is unknown.
            connection.close()
            raise
        self._put_back(connection)
        return answer

    def _take(self, until: float) -> Connection:
        now = time.monotonic()
        stale: list[Connection] = []
        found: Connection | None = None
        with self._lock:
            if self._pid != os.getpid():
                # Forked: these are the parent's.
                self._idle, self._pid = [], os.getpid()
            while self._idle and found is None:
                since, connection = self._idle.pop()
                if now - since < _KEEP_S:
                    found = connection
                else:
                    stale.append(connection)
        for connection in stale:
            connection.close()
        return found or Connection(self.settings, until)

    def _put_back(self, connection: Connection) -> None:
        with self._lock:
            if len(self._idle) < _KEEP and self._pid == os.getpid():
                self._idle.append((time.monotonic(), connection))
                return
        connection.close()

    # ------------------------------------------------------------------ service

    def describe(self, **options: Any) -> types.ServiceInfo:
        return self.call('describe', **options)

    def stats(self) -> types.ServiceStats:
        return self.call('stats')

    # ------------------------------------------------------------------ pools

    def pool_create(self, spec: types.PoolSpec) -> types.PoolInfo:
        return self.call('pool_create', spec)

    def pool_import(self, bdev: types.BdevSpec, *, force: bool = False) -> types.PoolInfo:
        """`force` takes it away from a service that has it open: see the contract for what that may cost."""
        return self.call('pool_import', bdev, force)

    def pool_export(self, pool: str) -> None:
        self.call('pool_export', pool)

    def pool_list(self, **options: Any) -> list[types.PoolInfo]:
        return self.call('pool_list', **options)

    def pool_describe(self, pool: str) -> types.PoolInfo:
        return self.call('pool_describe', pool)

    def pool_set_discard(self, pool: str, discard: bool) -> types.PoolInfo:
        return self.call('pool_set_discard', pool, discard)

    def pool_trim(self, pool: str, job_id: str) -> types.JobInfo:
        """Start to give all free space back to the device; `job_list` says when that has ended."""
        return self.call('pool_trim', pool, job_id)

    def pool_check(self, pool: str, check_id: str, *, repair: bool = False) -> types.PoolCheck:
        """Start a check, see the contract; `pool_check_describe` says when it has ended."""
        return self.call('pool_check', pool, check_id, repair)

    def pool_check_describe(self, check_id: str) -> types.PoolCheck:
        return self.call('pool_check_describe', check_id)

    # ------------------------------------------------------------------ volumes

    def volume_create(self, pool: str, spec: types.VolumeSpec, **options: Any) -> types.VolumeInfo:
        return self.call('volume_create', pool, spec, **options)

    def volume_delete(self, volume_id: str, **options: Any) -> None:
        self.call('volume_delete', volume_id, **options)

    def volume_extend(self, volume_id: str, size_bytes: int, **options: Any) -> types.VolumeInfo:
        return self.call('volume_extend', volume_id, size_bytes, **options)

    def volume_describe(self, volume_id: str, **options: Any) -> types.VolumeInfo:
        return self.call('volume_describe', volume_id, **options)

    def volumes(self, pool: str, page_size: int = 0) -> Iterator[types.VolumeInfo]:
        """Volumes and snapshots of a pool in order of id, fetched page by page."""
        after = ''
        while True:
            page = self.call('volume_list', pool, after, page_size)
            yield from page.volumes
            if not page.next_after:
                return
            after = page.next_after

    def snapshot_create(self, volume_id: str, snapshot_id: str, name: str, **options: Any) -> types.VolumeInfo:
        return self.call('snapshot_create', volume_id, snapshot_id, name, **options)

    def volume_clone(self, snapshot_id: str, spec: types.VolumeSpec, **options: Any) -> types.VolumeInfo:
        return self.call('volume_clone', snapshot_id, spec, **options)

    def volume_revert(self, volume_id: str, snapshot_id: str, **options: Any) -> types.VolumeInfo:
        return self.call('volume_revert', volume_id, snapshot_id, **options)

    def volume_flatten(self, volume_id: str, job_id: str) -> types.JobInfo:
        return self.call('volume_flatten', volume_id, job_id)

    def volume_set_qos(self, volume_id: str, limits: types.QosLimits, **options: Any) -> types.VolumeInfo:
        return self.call('volume_set_qos', volume_id, limits, **options)

    def volume_stats(self, volume_id: str) -> types.VolumeStats:
        return self.call('volume_stats', volume_id)

    # ------------------------------------------------------------------ attachments

    def authorise(self, authorisation: types.Authorisation, **options: Any) -> None:
        self.call('authorise', authorisation, **options)

    def unauthorise(self, volume_id: str, host: str, grant_id: str = '', **options: Any) -> None:
        """An empty host means every host, an empty grant every grant of the host."""
        self.call('unauthorise', volume_id, host, grant_id, **options)

    def authorisation_list(self, volume_id: str = '') -> list[types.Authorisation]:
        return self.call('authorisation_list', volume_id)

    def attach(self, spec: types.AttachSpec) -> types.AttachmentInfo:
        return self.call('attach', spec)

    def detach(self, attachment_id: str) -> None:
        self.call('detach', attachment_id)

    def attachment_list(self, volume_id: str = '', client_id: str = '') -> list[types.AttachmentInfo]:
        return self.call('attachment_list', volume_id, client_id)

    def controller_ensure(self, client_id: str, queues: int = 0) -> str:
        return self.call('controller_ensure', client_id, queues)

    def controller_delete(self, client_id: str) -> None:
        self.call('controller_delete', client_id)

    # ------------------------------------------------------------------ data sockets and jobs

    def data_open(self, spec: types.DataSocketSpec, **options: Any) -> types.DataSocketInfo:
        return self.call('data_open', spec, **options)

    def data_close(self, socket_id: str, **options: Any) -> None:
        self.call('data_close', socket_id, **options)

    def job_list(self) -> list[types.JobInfo]:
        return self.call('job_list')

    def job_cancel(self, job_id: str) -> None:
        self.call('job_cancel', job_id)
