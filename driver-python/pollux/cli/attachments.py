"""polluxctl attach, detach, attachment, authorise, unauthorise, authorisation, controller."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from pollux.cli import base
from pollux.rpc import ttypes as types

_TRANSPORTS = {'scsi': types.Transport.SCSI, 'blk': types.Transport.BLK}
_SCSI_NAMES = {'pollux': None, 'qemu': types.ScsiNames.QEMU}


class Attach(base.ShowOne):
    """Place a vhost-user socket through which a guest reaches a volume."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('volume', help='Id, name, or POOL/NAME.')
        parser.add_argument('--client', type=base.uuid_text, required=True, metavar='UUID',
                            help='The guest. Scsi volumes of one guest share a controller.')
        parser.add_argument('--transport', choices=sorted(_TRANSPORTS), default='scsi', help='Default: scsi.')
        parser.add_argument('--scsi-names', choices=sorted(_SCSI_NAMES), default='pollux',
                            help="What the guest's /dev/disk/by-id names are made of. Default: pollux.")
        parser.add_argument('--queues', type=int, default=0, help="Request queues. Default: the service's.")
        parser.add_argument('--read-only', action='store_true')
        parser.add_argument('--id', type=base.uuid_text, metavar='UUID', help='Of the attachment. Default: a new one.')
        return base.add_examples(parser, ['polluxctl attach data --client 11111111-2222-4333-8444-555555555555'])

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        return base.fields(self.client.attach(types.AttachSpec(
            attachment_id=parsed_args.id or base.new_id(), volume_id=base.volume_id(self.client, parsed_args.volume),
            client_id=parsed_args.client, transport=_TRANSPORTS[parsed_args.transport], queues=parsed_args.queues,
            read_only=parsed_args.read_only, scsi_names=_SCSI_NAMES[parsed_args.scsi_names])),
            transport=types.Transport, scsi_names=types.ScsiNames)


class Detach(base.Command):
    """Take a socket away. A guest that is connected loses the disk."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('attachment', type=base.uuid_text, help='Id, see: polluxctl attachment list.')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        self.client.detach(parsed_args.attachment)


class List(base.Lister):
    """List attachments."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('--volume', default='', help='Of this volume alone.')
        parser.add_argument('--client', default='', help='Of this guest alone.')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterator[Sequence[Any]]]:
        volume = base.volume_id(self.client, parsed_args.volume) if parsed_args.volume else ''
        columns = ('ID', 'Volume', 'Client', 'Transport', 'Target', 'LUN', 'Socket', 'Read Only', 'Connected')
        return columns, ((one.attachment_id, one.volume_id, one.client_id,
                          base.enum_name(types.Transport, one.transport), one.target, one.lun, one.socket_path,
                          one.read_only, one.connected)
                         for one in self.client.attachment_list(volume, parsed_args.client))


class Authorise(base.Command):
    """Let a compute host attach a volume."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('volume', help='Id, name, or POOL/NAME.')
        parser.add_argument('host', help="The name in the host's certificate.")
        parser.add_argument('--read-only', action='store_true')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        self.client.authorise(types.Authorisation(volume_id=base.volume_id(self.client, parsed_args.volume),
                                                  host=parsed_args.host, read_only=parsed_args.read_only))


class Unauthorise(base.Command):
    """Take a permission back. Attachments of that host are dropped."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('volume', help='Id, name, or POOL/NAME.')
        group = parser.add_mutually_exclusive_group(required=True)
        group.add_argument('host', nargs='?', help="The name in the host's certificate.")
        group.add_argument('--all', action='store_true', help='Every host.')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        self.client.unauthorise(base.volume_id(self.client, parsed_args.volume), parsed_args.host or '')


class AuthorisationList(base.Lister):
    """List which host may attach which volume."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('--volume', default='', help='Of this volume alone.')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterator[Sequence[Any]]]:
        volume = base.volume_id(self.client, parsed_args.volume) if parsed_args.volume else ''
        return ('Volume', 'Host', 'Read Only', 'Grant'), (
            (one.volume_id, one.host, bool(one.read_only), one.grant_id or '')
            for one in self.client.authorisation_list(volume))


class ControllerEnsure(base.Command):
    """Make a guest's scsi controller when it is missing, and print its socket."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('client', type=base.uuid_text, help='The guest.')
        parser.add_argument('--queues', type=int, default=0, help="Request queues. Default: the service's.")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        self.say(self.client.controller_ensure(parsed_args.client, parsed_args.queues))


class ControllerDelete(base.Command):
    """Take a guest's scsi controller away. Refused while volumes are attached to it."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('client', type=base.uuid_text, help='The guest.')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        self.client.controller_delete(parsed_args.client)
