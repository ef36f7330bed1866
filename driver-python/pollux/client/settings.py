"""Where the service is, and by which certificate we are known to it.

Each value comes from the first place that has it: what the caller gives, the environment (POLLUX_ADDRESS, POLLUX_CA,
POLLUX_CERTIFICATE, POLLUX_KEY, ...), a TOML file with the same keys in lower case. The file is $POLLUX_CLIENT_CONF,
else ~/.config/pollux/client.toml, else /etc/pollux/client.toml.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tomllib
from collections.abc import Mapping
from typing import Any

from pollux import errors

DEFAULT_PORT = 9640
SYSTEM_FILE = pathlib.Path('/etc/pollux/client.toml')
FILE_VARIABLE = 'POLLUX_CLIENT_CONF'


@dataclasses.dataclass(frozen=True)
class Settings:
    """`address` is host:port; the files are PEM."""

    address: str
    ca: pathlib.Path
    certificate: pathlib.Path
    key: pathlib.Path
    #: The name that the service's certificate must have; that of the address when empty.
    server_name: str = ''
    #: A call ends with an error when this is over, retries included.
    deadline_ms: int = 60_000
    #: How long to go on trying to reach a service that does not answer: a restart should fit in.
    connect_ms: int = 10_000
    #: A larger answer breaks the connection.
    max_frame_bytes: int = 16 << 20

    @property
    def host_and_port(self) -> tuple[str, int]:
        return split_address(self.address)

    @property
    def expected_name(self) -> str:
        return self.server_name or self.host_and_port[0]


def split_address(address: str) -> tuple[str, int]:
    """'host:port', '[v6]:port', or either without a port. Raises Misconfigured."""
    host, separator, port = address.rpartition(':')
    if not separator or (host.count(':') and not host.endswith(']')) or address.endswith(']'):
        host, port = address, str(DEFAULT_PORT)
    host = host.removeprefix('[').removesuffix(']')
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise errors.Misconfigured(f"address '{address}' is not HOST:PORT, such as 127.0.0.1:{DEFAULT_PORT}")
    return host, int(port)


def load(given: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """The settings from all places. Raises Misconfigured, which names what is missing or wrong and where to put it."""
    surroundings = os.environ if environment is None else environment
    path = _file(surroundings)
    from_file = _read(path) if path else {}
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    if unknown := set(from_file) - set(fields):
        raise errors.Misconfigured(f'{path}: unknown key {sorted(unknown)[0]}; keys are {", ".join(fields)}')
    values: dict[str, Any] = {}
    for name in fields:
        variable = f'POLLUX_{name.upper()}'
        if given and given.get(name) not in (None, ''):
            values[name] = _convert(name, given[name], f'option {name}')
        elif surroundings.get(variable):
            values[name] = _convert(name, surroundings[variable], variable)
        elif name in from_file:
            values[name] = _convert(name, from_file[name], f'{path}: {name}')
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise errors.Misconfigured(f'It is not said how to reach the service: {name} is missing. Give it as an '
                                       f'option, as POLLUX_{name.upper()}, or as {name} in {path or SYSTEM_FILE}')
    settings = Settings(**values)
    split_address(settings.address)
    return settings


def _file(environment: Mapping[str, str]) -> pathlib.Path | None:
    named = environment.get(FILE_VARIABLE)
    if named:
        return pathlib.Path(named)
    candidates = [SYSTEM_FILE]
    home = environment.get('XDG_CONFIG_HOME') or (environment.get('HOME') and f'{environment["HOME"]}/.config')
    if home:
        candidates.insert(0, pathlib.Path(home) / 'pollux' / 'client.toml')
    return next((path for path in candidates if path.exists()), None)


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise errors.Misconfigured(f'{path}: {error}') from error


def _convert(name: str, value: Any, where: str) -> Any:
    if name.endswith(('_ms', '_bytes')):
        try:
            number = int(value)
        except (TypeError, ValueError):
            number = 0
        if number <= 0:
            raise errors.Misconfigured(f"{where}: '{value}' is not a positive number")
        return number
    if name in ('ca', 'certificate', 'key'):
        return pathlib.Path(str(value)).expanduser()
    return str(value)
