"""polluxctl: the application. Each command is an entry point of the group pollux.cli.

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 not found; 4 exists or busy; 5 no space; 6 denied or not trusted;
7 the service cannot be reached.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from cliff.app import App
from cliff.command import Command
from cliff.commandmanager import CommandManager

from pollux import __version__, errors
from pollux.client import Client

_EXIT_CODES: dict[type[errors.PolluxError], int] = {
    errors.NotFound: 3,
    errors.Exists: 4,
    errors.Busy: 4,
    errors.NoSpace: 5,
    errors.Denied: 6,
    errors.Untrusted: 6,
    errors.Unreachable: 7,
    errors.Retry: 7,
}
_DESCRIPTION = """\
Drive polluxd, the Pollux storage service.

How to reach it is said by options, by the environment (POLLUX_ADDRESS, POLLUX_CA,
POLLUX_CERTIFICATE, POLLUX_KEY) or by ~/.config/pollux/client.toml; in this order.

  polluxctl certs init /etc/pollux/certs
  polluxctl pool create fast --device /dev/nvme0n1
  polluxctl volume create --pool fast --size 10G data
  polluxctl attach data --client 6f1c... --transport scsi
  polluxctl volume list fast -f json
"""


class PolluxApp(App):
    def __init__(self) -> None:
        super().__init__(description=_DESCRIPTION, version=__version__, command_manager=CommandManager('pollux.cli'),
                         deferred_help=True)
        self._client: Client | None = None
        self._failure = 0

    def build_option_parser(self, description: str | None, version: str | None,
                            argparse_kwargs: dict[str, Any] | None = None) -> argparse.ArgumentParser:
        # Options of commands must not be taken for abbreviations of these.
        kwargs: dict[str, Any] = {'formatter_class': argparse.RawDescriptionHelpFormatter, 'allow_abbrev': False}
        kwargs |= argparse_kwargs or {}
        parser = super().build_option_parser(description, version, kwargs)
        parser.add_argument('--address', metavar='HOST:PORT', help='The service. Default: $POLLUX_ADDRESS.')
        parser.add_argument('--ca', metavar='FILE', help='Who signed its certificate (PEM). Default: $POLLUX_CA.')
        parser.add_argument('--certificate', metavar='FILE',
                            help='Our certificate (PEM). Default: $POLLUX_CERTIFICATE.')
        parser.add_argument('--key', metavar='FILE', help='Its key (PEM). Default: $POLLUX_KEY.')
        parser.add_argument('--server-name', metavar='NAME',
                            help="The name in the service's certificate, where the address does not give it.")
        parser.add_argument('--deadline-ms', metavar='N', help='When a call gives up; 60000.')
        return parser

    @property
    def client(self) -> Client:
        """Made at its first use: some commands need no service."""
        if self._client is None:
            names = ('address', 'ca', 'certificate', 'key', 'server_name', 'deadline_ms')
            self._client = Client.load({name: getattr(self.options, name) for name in names})
        return self._client

    def run_subcommand(self, argv: list[str]) -> int:
        self._failure = 0
        try:
            return super().run_subcommand(argv) and (self._failure or 1)
        finally:
            if self._client is not None:
                self._client.close()

    def clean_up(self, cmd: Command, result: int, err: BaseException | None) -> None:
        """Called by cliff with what the command raised, which it has logged and answers with 1 whatever it was."""
        super().clean_up(cmd, result, err)
        if isinstance(err, errors.PolluxError):
            self._failure = _EXIT_CODES.get(type(err), 1)
        else:
            self._failure = result


def main(argv: list[str] | None = None) -> int:
    # Without a command cliff would start a shell of its own.
    return PolluxApp().run((sys.argv[1:] if argv is None else argv) or ['--help'])


if __name__ == '__main__':
    sys.exit(main())
