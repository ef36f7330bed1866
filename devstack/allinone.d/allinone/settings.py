"""Where everything lives and which ports it uses: one frozen value that every other module receives."""

from __future__ import annotations

import dataclasses
import os
import pathlib

STATE_VARIABLE = 'POLLUX_ALLINONE_STATE'
DEFAULT_STATE = pathlib.Path('/var/lib/pollux-allinone')
LOOPBACK = '127.0.0.1'
GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Ports:
    """Every TCP port that the cloud listens on, all on the loopback address alone.

    The API ports are the ones OpenStack documents, so that what users read elsewhere fits; the ports behind them are
    out of the way of a broker that the machine may run already.
    """

    keystone: int = 5000
    nova: int = 8774
    cinder: int = 8776
    placement: int = 8778
    glance: int = 9292
    network: int = 9696
    polluxd: int = 29640
    polluxd_metrics: int = 29641
    rabbitmq: int = 25672
    rabbitmq_distribution: int = 25673
    epmd: int = 24369

    def items(self) -> list[tuple[str, int]]:
        return [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]


@dataclasses.dataclass(frozen=True)
class Settings:
    """`state` holds all that is written at run time; `repo` is the checkout that is demonstrated."""

    state: pathlib.Path
    repo: pathlib.Path
    ports: Ports = Ports()
    #: Name of this machine towards Nova, Cinder and polluxd: also the CN of the compute certificate.
    host: str = 'allinone'
    region: str = 'RegionOne'
    pool_name: str = 'pool1'
    #: Sparse, so this is a bound and not what is taken.
    pool_bytes: int = 8 * GIB
    #: What a first run writes outside the pool: Debian packages, the Python environment, the build, databases.
    needed_disk_bytes: int = 10 * GIB
    needed_memory_bytes: int = 6 * GIB
    #: Where the Python environment is, when it is not in the state folder.
    shared_venv: pathlib.Path | None = None

    @classmethod
    def load(cls, state: str | None = None) -> Settings:
        """Settings for the state folder named by the caller, by the environment or by default, in this order."""
        chosen = state or os.environ.get(STATE_VARIABLE) or str(DEFAULT_STATE)
        repo = pathlib.Path(__file__).resolve().parents[3]
        return cls(state=pathlib.Path(chosen).resolve(), repo=repo)

    @property
    def venv(self) -> pathlib.Path:
        return self.shared_venv or self.state / 'venv'

    @property
    def etc(self) -> pathlib.Path:
        return self.state / 'etc'

    @property
    def run(self) -> pathlib.Path:
        return self.state / 'run'

    @property
    def logs(self) -> pathlib.Path:
        return self.state / 'logs'

    @property
    def data(self) -> pathlib.Path:
        return self.state / 'data'

    def folder(self, *parts: str, mode: int = 0o755) -> pathlib.Path:
        """A folder below `state`, made when it is missing."""
        path = self.state.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)
        return path

    def program(self, name: str) -> str:
        """A console script of the Python environment."""
        return str(self.venv / 'bin' / name)

    def url(self, port: int, path: str = '') -> str:
        return f'http://{LOOPBACK}:{port}{path}'
