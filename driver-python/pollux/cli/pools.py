"""polluxctl pool ..."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from typing import Any

from pollux import errors
from pollux.cli import base
from pollux.rpc import ttypes as types


def _show(pool: types.PoolInfo) -> tuple[Sequence[str], Sequence[Any]]:
    return base.fields(pool)


def _device_options(parser: argparse.ArgumentParser) -> Any:
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument('--file', metavar='PATH', help='A file on the service\'s host.')
    group.add_argument('--device', metavar='PATH', help='A block device of the service\'s host.')
    return group


class Create(base.ShowOne):
    """Format a device and open the pool on it. Refused when the device holds something that is recognised"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('name', help='Unique in the service.')
        _device_options(parser).add_argument('--ram', action='store_true',
                                             help='Memory of the service, for tests: gone when it stops.')
        parser.add_argument('--size', type=base.size, metavar='SIZE',
                            help='Size of the memory, or of the file, which is made when it is missing.')
        parser.add_argument('--cluster', type=base.size, metavar='SIZE',
                            help="Unit of allocation: a power of two from 64K to 4M. Default: the service's.")
        parser.add_argument('--overwrite', action='store_true',
                            help='Lose the file system or partition table that the device holds.')
        parser.add_argument('--discard', choices=('on', 'off'), default='on',
                            help='Give freed space back to the device. Default: on.')
        parser.add_argument('--id', type=base.uuid_text, metavar='UUID', help='Default: a new one.')
        return base.add_examples(parser, [
            'polluxctl pool create fast --device /dev/nvme0n1',
            'polluxctl pool create test --file /var/lib/pollux/pool.img --size 20G'])

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        if parsed_args.ram:
            if parsed_args.size is None:
                raise errors.Invalid('--ram needs --size')
            bdev = types.BdevSpec(kind=types.BdevKind.RAM, size_bytes=parsed_args.size)
        else:
            path = parsed_args.file or parsed_args.device
            if parsed_args.device and parsed_args.size is not None:
                raise errors.Invalid('A device has the size it has: --size is for --file and --ram')
            bdev = types.BdevSpec(kind=types.BdevKind.URING, path=os.path.abspath(path), size_bytes=parsed_args.size)
        return _show(self.client.pool_create(types.PoolSpec(
            pool_id=parsed_args.id or base.new_id(), name=parsed_args.name, bdev=bdev,
            cluster_bytes=parsed_args.cluster, overwrite=parsed_args.overwrite,
            discard=parsed_args.discard == 'on')))


class Import(base.ShowOne):
    """Open the pool that a file or device holds."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        _device_options(parser)
        parser.add_argument('--force', action='store_true',
                            help='Take the pool away from the service that has it open, on this host or another. That '
                                 'one stops writing when it notices, within seconds or, when it was suspended, after '
                                 'it goes on; what its guests write until then is lost and may damage the pool. Stop '
                                 'that service instead, if you can; if not, run "pool check" afterwards.')
        return base.add_examples(parser, ['polluxctl pool import --device /dev/nvme0n1'])

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        path = os.path.abspath(parsed_args.file or parsed_args.device)
        return _show(self.client.pool_import(types.BdevSpec(kind=types.BdevKind.URING, path=path),
                                             force=parsed_args.force))


class Export(base.Command):
    """Close a pool and forget it. Its data stays on the device."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('pool', help='Name or id.')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        self.client.pool_export(parsed_args.pool)


class List(base.Lister):
    """List the pools."""

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterator[Sequence[Any]]]:
        columns = ('ID', 'Name', 'State', 'Capacity', 'Free', 'Used %', 'Watermark %', 'Provisioned', 'Provisioned %',
                   'Volumes', 'Snapshots')
        return columns, ((pool.pool_id, pool.name, 'lost' if pool.lost_to else 'failed' if pool.failure else 'ok',
                          base.Size(pool.capacity_bytes), base.Size(pool.free_bytes), pool.used_percent,
                          pool.watermark_percent or None, base.Size(pool.provisioned_bytes),
                          pool.provisioned_percent, pool.volumes, pool.snapshots)
                         for pool in self.client.pool_list())


class Show(base.ShowOne):
    """Show a pool."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('pool', help='Name or id.')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        return _show(self.client.pool_describe(parsed_args.pool))


class Discard(base.ShowOne):
    """Choose whether space that is freed from now on goes back to the device."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('pool', help='Name or id.')
        parser.add_argument('discard', choices=('on', 'off'))
        return base.add_examples(parser, ['polluxctl pool discard fast off'])

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        return _show(self.client.pool_set_discard(parsed_args.pool, parsed_args.discard == 'on'))


class Trim(base.ShowOne):
    """Give all free space of a pool back to its device, as a job.

    Covers what was freed while discard was off, and what a crash left. Guests go on meanwhile.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('pool', help='Name or id.')
        parser.add_argument('--wait', action='store_true', help='Until it is done, showing progress.')
        parser.add_argument('--job-id', type=base.uuid_text, metavar='UUID', help='Default: a new one.')
        return base.add_examples(parser, ['polluxctl pool trim fast --wait'])

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        job = self.client.pool_trim(parsed_args.pool, parsed_args.job_id or base.new_id())
        if parsed_args.wait:
            job = base.wait_for_job(self.client, job.job_id)
        return base.fields(job, state=types.JobState)


def _findings(check: types.PoolCheck) -> Iterator[str]:
    """In the words of polluxd --fsck."""
    yield from check.findings
    found = check.lost + check.doubly_used + check.leaked + check.damaged
    if found > len(check.findings):
        yield f'... and {found - len(check.findings)} more'
    yield (f'pool {check.pool} ({check.pool_id}): {check.volumes} volumes and snapshots, {check.data_clusters} '
           f'clusters of data, {check.metadata_pages} pages of metadata, {check.replayed_records} journal records '
           'since the last checkpoint')
    repaired = f'; {check.repaired} repaired' if check.repaired else ''
    yield (f'{check.lost} lost, {check.doubly_used} doubly used, {check.leaked} leaked, {check.damaged} damaged'
           f'{repaired}')


class Check(base.Command):
    """Check a pool's metadata, and mend it. Exit code 0: in order, or everything mended; 1: errors are left.

    An open pool is closed for it and opened again: none of its volumes may be in use.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('pool', help="Name or id, or the absolute path of the device on the service's host.")
        parser.add_argument('--repair', action='store_true', help='Mend what can be mended without guessing.')
        return base.add_examples(parser, ['polluxctl pool check fast', 'polluxctl pool check fast --repair'])

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        check_id = base.new_id()
        self.client.pool_check(parsed_args.pool, check_id, repair=parsed_args.repair)
        base.wait_for_job(self.client, check_id, may_fail=True)
        check = self.client.pool_check_describe(check_id)
        if check.state != types.JobState.DONE:
            raise errors.Internal(f'pool {check.pool}: {check.error}')
        for line in _findings(check):
            self.say(line)
        if check.error:
            raise errors.Internal(check.error)
        return int(check.lost + check.doubly_used + check.leaked + check.damaged != check.repaired)
