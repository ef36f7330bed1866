"""polluxctl data ..."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from pollux.cli import base
from pollux.nbd import url
from pollux.rpc import ttypes as types


class Open(base.ShowOne):
    """Open a local NBD socket on a volume or snapshot, for qemu-img and the like."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('volume', help='Id, name, or POOL/NAME.')
        parser.add_argument('--read-only', action='store_true')
        parser.add_argument('--shared', action='store_true',
                            help='Write even while a guest, or another shared socket, writes the volume.')
        parser.add_argument('--id', type=base.uuid_text, metavar='UUID', help='Of the socket. Default: a new one.')
        return base.add_examples(parser, [
            'polluxctl data open data',
            'qemu-img convert -n -O raw image.qcow2 "$(polluxctl data open data -f value -c url)"'])

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        opened = self.client.data_open(types.DataSocketSpec(
            socket_id=parsed_args.id or base.new_id(), volume_id=base.volume_id(self.client, parsed_args.volume),
            read_only=parsed_args.read_only, shared=parsed_args.shared))
        names, values = base.fields(opened)
        return (*names, 'url'), (*values, url(opened))


class Close(base.Command):
    """Flush and close an NBD socket."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('socket', type=base.uuid_text, help='The id that data open showed.')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        self.client.data_close(parsed_args.socket)
