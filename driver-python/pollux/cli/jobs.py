"""polluxctl job ..."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from pollux.cli import base
from pollux.rpc import ttypes as types


class List(base.Lister):
    """List long work: flattening, big deletions."""

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterator[Sequence[Any]]]:
        columns = ('ID', 'Kind', 'Volume', 'State', 'Done', 'Total', 'Error')
        return columns, ((job.job_id, job.kind, job.volume_id, base.enum_name(types.JobState, job.state), job.done,
                          job.total, job.error) for job in self.client.job_list())


class Cancel(base.Command):
    """Cancel a job."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('job', type=base.uuid_text, help='Id, see: polluxctl job list.')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        self.client.job_cancel(parsed_args.job)
