"""polluxctl volume ..."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from pollux import errors
from pollux.cli import base
from pollux.rpc import ttypes as types

_VOLUME_HELP = 'Id, name, or POOL/NAME.'
_LIMITS = ('read_iops', 'write_iops', 'total_iops', 'read_bytes_per_s', 'write_bytes_per_s', 'total_bytes_per_s')
#: Of each limit: its burst, and for how long that may last.
_BURSTS = ('read_burst_iops', 'write_burst_iops', 'total_burst_iops',
           'read_burst_bytes_per_s', 'write_burst_bytes_per_s', 'total_burst_bytes_per_s')
_LENGTHS = ('read_iops_burst_s', 'write_iops_burst_s', 'total_iops_burst_s',
            'read_bytes_burst_s', 'write_bytes_burst_s', 'total_bytes_burst_s')

_Shown = tuple[Sequence[str], Sequence[Any]]


def _show(volume: types.VolumeInfo) -> _Shown:
    return base.fields(volume, provisioning=types.Provisioning)


def _add_identity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('name', help='Unique in its pool.')
    parser.add_argument('--id', type=base.uuid_text, metavar='UUID', help='Default: a new one.')


def _provisioning(parsed_args: argparse.Namespace) -> int:
    return types.Provisioning.THICK if parsed_args.thick else types.Provisioning.THIN


class _OnVolume:
    """Commands whose first argument is a volume."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)  # type: ignore[misc]
        parser.add_argument('volume', help=_VOLUME_HELP)
        return parser


class Create(base.ShowOne):
    """Create an empty volume."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        _add_identity(parser)
        parser.add_argument('--pool', required=True, help='Name or id of its pool.')
        parser.add_argument('--size', type=base.size, required=True, metavar='SIZE', help='Such as 10G.')
        parser.add_argument('--thick', action='store_true', help='Reserve its whole size now.')
        parser.add_argument('--block-size', type=int, choices=(512, 4096), metavar='BYTES',
                            help="Of the blocks that guests see: 512 or 4096. Default: 512, whatever the pool's device "
                                 'has; firmware boots from no other.')
        return base.add_examples(parser, ['polluxctl volume create --pool fast --size 10G data',
                                          'polluxctl volume create --pool fast --size 512M --thick log',
                                          'polluxctl volume create --pool fast --size 1T --block-size 4096 db'])

    def take_action(self, parsed_args: argparse.Namespace) -> _Shown:
        return _show(self.client.volume_create(parsed_args.pool, types.VolumeSpec(
            volume_id=parsed_args.id or base.new_id(), name=parsed_args.name, size_bytes=parsed_args.size,
            provisioning=_provisioning(parsed_args), block_bytes=parsed_args.block_size)))


class Delete(base.Command):
    """Delete volumes or snapshots. One that is given by an id that is not there counts as deleted."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('volume', nargs='+', help=_VOLUME_HELP)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        for given in parsed_args.volume:
            self.client.volume_delete(base.volume_id(self.client, given))


class Extend(_OnVolume, base.ShowOne):
    """Let a volume grow; connected guests are told."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('size', type=base.size, metavar='SIZE', help='The new size.')
        return base.add_examples(parser, ['polluxctl volume extend data 20G'])

    def take_action(self, parsed_args: argparse.Namespace) -> _Shown:
        volume = base.volume_id(self.client, parsed_args.volume)
        return _show(self.client.volume_extend(volume, parsed_args.size))


class List(base.Lister):
    """List volumes and snapshots, of one pool or of all."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('pool', nargs='?', help='Name or id. Default: all pools.')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterator[Sequence[Any]]]:
        pools = [parsed_args.pool] if parsed_args.pool else [pool.name for pool in self.client.pool_list()]
        columns = ('ID', 'Name', 'Pool', 'Size', 'Kind', 'Parent', 'Mapped', 'Attachments')
        return columns, ((one.volume_id, one.name, one.pool, base.Size(one.size_bytes), _kind(one), one.parent_id,
                          base.Size(one.mapped_bytes), one.attachments)
                         for pool in pools for one in self.client.volumes(pool))


def _kind(volume: types.VolumeInfo) -> str:
    return 'snapshot' if volume.snapshot else str(base.enum_name(types.Provisioning, volume.provisioning))


class Show(_OnVolume, base.ShowOne):
    """Show a volume or snapshot."""

    def take_action(self, parsed_args: argparse.Namespace) -> _Shown:
        return _show(self.client.volume_describe(base.volume_id(self.client, parsed_args.volume)))


class Snapshot(_OnVolume, base.ShowOne):
    """Take a snapshot of a volume: a read-only copy of what it holds now."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        _add_identity(parser)
        return base.add_examples(parser, ['polluxctl volume snapshot data data-monday'])

    def take_action(self, parsed_args: argparse.Namespace) -> _Shown:
        volume = base.volume_id(self.client, parsed_args.volume)
        return _show(self.client.snapshot_create(volume, parsed_args.id or base.new_id(), parsed_args.name))


class Clone(base.ShowOne):
    """Create a writable volume from a snapshot."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('snapshot', help=_VOLUME_HELP)
        _add_identity(parser)
        parser.add_argument('--size', type=base.size, default=0, metavar='SIZE', help="Default: the snapshot's.")
        parser.add_argument('--thick', action='store_true', help='Reserve its whole size now.')
        return base.add_examples(parser, ['polluxctl volume clone data-monday data-copy'])

    def take_action(self, parsed_args: argparse.Namespace) -> _Shown:
        snapshot = base.volume_id(self.client, parsed_args.snapshot)
        return _show(self.client.volume_clone(snapshot, types.VolumeSpec(
            volume_id=parsed_args.id or base.new_id(), name=parsed_args.name, size_bytes=parsed_args.size,
            provisioning=_provisioning(parsed_args))))


class Revert(_OnVolume, base.ShowOne):
    """Make a volume hold again what a snapshot of it holds. What was written since is lost."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('snapshot', help=_VOLUME_HELP)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> _Shown:
        return _show(self.client.volume_revert(base.volume_id(self.client, parsed_args.volume),
                                               base.volume_id(self.client, parsed_args.snapshot)))


class Flatten(_OnVolume, base.ShowOne):
    """Give a clone its own copy of all that it shares, as a job."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('--wait', action='store_true', help='Until it is done, showing progress.')
        parser.add_argument('--job-id', type=base.uuid_text, metavar='UUID', help='Default: a new one.')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> _Shown:
        job = self.client.volume_flatten(base.volume_id(self.client, parsed_args.volume),
                                         parsed_args.job_id or base.new_id())
        if parsed_args.wait:
            job = base.wait_for_job(self.client, job.job_id)
        return base.fields(job, state=types.JobState)


class Stats(_OnVolume, base.ShowOne):
    """Show what a volume's guests have done since the service started."""

    def take_action(self, parsed_args: argparse.Namespace) -> _Shown:
        return base.fields(self.client.volume_stats(base.volume_id(self.client, parsed_args.volume)))


class QosSet(_OnVolume, base.ShowOne):
    """Limit a volume. Limits and bursts that are not named are lifted.

    A burst is a higher rate that a limit allows after a pause, until burst times length requests or bytes were saved up
    and used; they are saved up at the rate of the limit. With a length of 1 they may be used at any rate.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        for limit in _LIMITS:
            parser.add_argument(f'--{limit.replace("_", "-")}', type=base.size, metavar='N', help='0: no limit.')
        for burst in _BURSTS:
            parser.add_argument(f'--{burst.replace("_", "-")}', type=base.size, metavar='N',
                                help='At least as high as the limit. 0: no burst.')
        for length in _LENGTHS:
            parser.add_argument(f'--{length.replace("_", "-")}', type=int, metavar='SECONDS',
                                help='How long the burst may last, 1 to 3600. Default: 1.')
        return base.add_examples(parser, [
            'polluxctl volume qos set data --total-iops 5000 --write-bytes-per-s 100M',
            'polluxctl volume qos set data --total-iops 1000 --total-burst-iops 5000 --total-iops-burst-s 60'])

    def take_action(self, parsed_args: argparse.Namespace) -> _Shown:
        limits = {name: getattr(parsed_args, name) for name in (*_LIMITS, *_BURSTS, *_LENGTHS)}
        if all(value is None for value in limits.values()):
            raise errors.Invalid('Name at least one limit; --total-iops 0 lifts all of them')
        return _show(self.client.volume_set_qos(base.volume_id(self.client, parsed_args.volume),
                                                types.QosLimits(**limits)))
