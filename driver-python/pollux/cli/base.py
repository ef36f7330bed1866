"""What the commands share: the client, columns, names of objects, waiting for jobs."""

from __future__ import annotations

import argparse
import sys
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from cliff import columns, command, lister, show

from pollux import errors, sizes
from pollux.client import Client
from pollux.rpc import ttypes as types

_POLL_S = 0.2


class Size(columns.FormattableColumn[int]):
    """Bytes: short in tables, the number everywhere else."""

    def human_readable(self) -> str:
        return sizes.format_bytes(self._value)


class _Base:
    app: Any

    @property
    def client(self) -> Client:
        return self.app.client


class Command(_Base, command.Command):
    """Prints nothing, or a line of its own."""

    def say(self, text: str) -> None:
        self.app.stdout.write(f'{text}\n')


class Lister(_Base, lister.Lister):
    """A table."""


class ShowOne(_Base, show.ShowOne):
    """One object, field by field."""


def size(text: str) -> int:
    """For argparse: a size with or without a unit."""
    try:
        return sizes.parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def uuid_text(text: str) -> str:
    """For argparse: a UUID in its canonical form."""
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not a UUID") from error


def is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def new_id() -> str:
    return str(uuid.uuid4())


def volume_id(client: Client, given: str) -> str:
    """The id of a volume or snapshot that is given by id, by name, or as POOL/NAME."""
    if is_uuid(given):
        return given.lower()
    pool, _, name = given.rpartition('/')
    pools = [pool] if pool else [found.name for found in client.pool_list()]
    matches = [found.volume_id for one in pools for found in client.volumes(one) if found.name == name]
    if not matches:
        raise errors.NotFound(f"There is no volume '{given}'. List them: polluxctl volume list")
    if len(matches) > 1:
        raise errors.Invalid(f"'{given}' is the name of {len(matches)} volumes: give POOL/{name} or an id")
    return matches[0]


def enum_name(enum: Any, value: int | None) -> str | None:
    """'scsi' for Transport.SCSI."""
    return None if value is None else enum._VALUES_TO_NAMES.get(value, str(value)).lower()


def plain(value: Any) -> Any:
    """A field as tables and JSON show it."""
    if isinstance(value, set):
        return ', '.join(sorted(value))
    if isinstance(value, types.QosLimits):
        return {key: amount for key, amount in vars(value).items() if amount} or None
    if isinstance(value, types.BdevSpec):
        return {'kind': enum_name(types.BdevKind, value.kind), 'path': value.path, 'size_bytes': value.size_bytes}
    if isinstance(value, types.PoolSpace):
        return dict(vars(value))
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, types.LatencyHistogram):
        return value.buckets
    return value


def fields(thing: Any, **enums: Any) -> tuple[Sequence[str], Sequence[Any]]:
    """Names and values of a struct; `enums` says which fields are enumerations."""
    values = {key: enum_name(enums[key], value) if key in enums else plain(value) for key, value in vars(thing).items()}
    return tuple(values), tuple(values.values())


def wait_for_job(client: Client, job_id: str, stream: Any = None, *, may_fail: bool = False) -> types.JobInfo:
    """Until the job is no longer running. Progress goes to `stream` (standard error) when that is a terminal.

    Raises Internal when the job failed or was cancelled, unless it may, NotFound when the service does not know it.
    """
    output = stream or sys.stderr
    shown = ''
    while True:
        job = next((found for found in client.job_list() if found.job_id == job_id), None)
        if job is None:
            raise errors.NotFound(f'The service knows no job {job_id}: jobs are forgotten when it restarts')
        if output.isatty():
            percent = 100 * job.done // job.total if job.total else 0
            line = f'{job.kind} {job.volume_id}: {percent} %'
            output.write('\r' + line.ljust(len(shown)))
            output.flush()
            shown = line
        if job.state != types.JobState.RUNNING:
            if shown:
                output.write('\n')
            if job.state != types.JobState.DONE and not may_fail:
                state = enum_name(types.JobState, job.state)
                raise errors.Internal(f'Job {job_id} ({job.kind} of {job.volume_id}) {state}: '
                                      f'{job.error or "no reason given"}')
            return job
        time.sleep(_POLL_S)


def add_examples(parser: argparse.ArgumentParser, lines: Iterable[str]) -> argparse.ArgumentParser:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = '\n'.join(['Examples:', *(f'  {line}' for line in lines)])
    return parser
