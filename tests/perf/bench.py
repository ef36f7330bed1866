"""What the cases share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from allinone.progress import Progress

from perf.load import Load
from perf.options import Options
from perf.process import Diskhost
from perf.results import Results
from perf.service import Service


@dataclass
class Bench:
    """The options, the results so far, and folders that go when all is done."""

    options: Options
    results: Results
    progress: Progress
    folder: Path
    sockets: Path
    _count: int = field(default=0)

    def wants(self, name: str) -> bool:
        return self.options.wants(name)

    def add(self, name: str, value: float, unit: str) -> None:
        if self.wants(name):
            self.results.add(name, value, unit)

    @contextmanager
    def load(self, *, favoured: bool = True) -> Iterator[Load]:
        with Load(self.options.build, self.options.cores[1], favoured=favoured) as load:
            yield load

    @contextmanager
    def service(
        self, *, cores: tuple[int, ...] = (), resume_latency_us: int | None = None, favoured: bool = True
    ) -> Iterator[Service]:
        """A new polluxd that serves from the serving core, or from `cores`; see polluxd.toml for the latency."""
        serving = cores or self.options.cores[:1]
        folder, sockets = self._new_folder(), self.new_sockets()
        service = Service(self.options.build, folder, sockets, serving, resume_latency_us, favoured=favoured)
        try:
            service.start()
            yield service
        finally:
            service.close()
            shutil.rmtree(service.folder)

    @contextmanager
    def diskhost(
        self, scsi: list[str], blk: list[str], *, poll: bool = False, queues: int = 1, favoured: bool = True
    ) -> Iterator[Diskhost]:
        sockets, cores = self.new_sockets() / "d", self.options.cores[:1]
        host = Diskhost(self.options.build, sockets, cores, scsi, blk, poll=poll, queues=queues, favoured=favoured)
        try:
            yield host
        finally:
            host.close()

    def _new_folder(self) -> Path:
        self._count += 1
        return self.folder / str(self._count)

    def new_sockets(self) -> Path:
        """A folder with a short path."""
        self._count += 1
        path = self.sockets / str(self._count)
        path.mkdir()
        return path


@contextmanager
def prepare(options: Options, progress: Progress) -> Iterator[Bench]:
    parent = options.folder or Path("/var/tmp")
    # Paths of UNIX sockets are short.
    with (
        tempfile.TemporaryDirectory(prefix="pollux-perf-", dir=parent) as folder,
        tempfile.TemporaryDirectory(prefix="pp-", dir="/tmp") as sockets,
    ):
        yield Bench(options, Results(), progress, Path(folder), Path(sockets))
