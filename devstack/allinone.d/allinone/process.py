"""Starting, finding and ending long-lived processes: the only module that does.

Every process is started in a session of its own and recorded in `run/NAME.json` by pid, start time and boot, so a pid
that was reused, or that outlived a reboot, is never taken for ours. All of them live in one private mount namespace
that a holder process keeps open; whatever else is found in it (QEMU, helpers that detached) descends from ours too, so
ending the namespace's members leaves nothing behind.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence

from . import files
from .errors import AllInOneError
from .settings import Settings

HOLDER = 'namespace'
TERM_GRACE_S = 30.0
KILL_GRACE_S = 10.0
LOG_LIMIT_BYTES = 32 << 20


@dataclasses.dataclass(frozen=True)
class Identity:
    """A process for as long as it lives: the pid alone may be reused."""

    pid: int
    start_ticks: int
    boot_id: str


def boot_id() -> str:
    return pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()


def stat_fields(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on (proc(5) field 3); None when there is no such process."""
    try:
        text = pathlib.Path(f'/proc/{pid}/stat').read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(')') + 2:].split()


def identify(pid: int) -> Identity | None:
    """None when the process is gone or a zombie that only its parent can bury."""
    fields = stat_fields(pid)
    if fields is None or fields[0] in 'ZX':
        return None
    return Identity(pid, int(fields[19]), boot_id())


def all_pids() -> Iterator[int]:
    return (int(name) for name in os.listdir('/proc') if name.isdigit())


def mount_namespace(pid: int) -> str | None:
    try:
        return os.readlink(f'/proc/{pid}/ns/mnt')
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def command(pid: int) -> str:
    """Name of the program that a process runs (proc(5), comm); empty when it is gone."""
    try:
        return pathlib.Path(f'/proc/{pid}/comm').read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ''


def session_members(session: int) -> list[Identity]:
    """Living processes of a session, its leader included."""
    members = []
    for pid in all_pids():
        fields = stat_fields(pid)
        if fields is not None and int(fields[3]) == session:
            identity = identify(pid)
            if identity:
                members.append(identity)
    return members


def end(victims: Sequence[Identity], grace_s: float = TERM_GRACE_S) -> None:
    """SIGTERM, and SIGKILL for those that are still there after the grace; returns when all are gone."""
    for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, KILL_GRACE_S)):
        alive = [victim for victim in victims if identify(victim.pid) == victim]
        for victim in alive:
            try:
                os.kill(victim.pid, number)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + patience_s
        while alive and time.monotonic() < deadline:
            time.sleep(0.05)
            alive = [victim for victim in alive if identify(victim.pid) == victim]
        if not alive:
            return
    raise AllInOneError('these processes do not end: ' + ', '.join(str(victim.pid) for victim in alive))


class Processes:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    # ------------------------------------------------------------------ records

    def _record(self, name: str) -> pathlib.Path:
        return self._settings.run / f'{name}.json'

    def log(self, name: str) -> pathlib.Path:
        return self._settings.logs / f'{name}.log'

    def names(self) -> list[str]:
        """Everything that was started and not stopped, oldest first."""
        records = sorted(self._settings.run.glob('*.json'), key=lambda path: path.stat().st_mtime_ns)
        return [path.stem for path in records]

    def identity(self, name: str) -> Identity | None:
        """The living process started under this name, else None."""
        try:
            known = json.loads(self._record(name).read_text())
        except FileNotFoundError:
            return None
        identity = Identity(known['pid'], known['start_ticks'], known['boot_id'])
        return identity if identify(identity.pid) == identity else None

    def started_at_s(self, name: str) -> float:
        """When the process of this name was started, in seconds since the epoch; it must be on record."""
        return self._record(name).stat().st_mtime

    def running(self, name: str) -> bool:
        return self.identity(name) is not None

    # ------------------------------------------------------------------ starting

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """What every process gets: nothing of the caller's shell, so that a run does not depend on who starts it."""
        base = {
            'PATH': f'{self._settings.venv}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
            'HOME': '/root',
            'LANG': 'C.UTF-8',
        }
        return base | dict(extra or {})

    def inside(self, argv: Sequence[str], user: str | None = None) -> list[str]:
        """`argv` made to run in the private mount namespace, as `user` when one is named."""
        holder = self.identity(HOLDER)
        if holder is None:
            raise AllInOneError('the private mount namespace is not there; start it with: devstack/allinone up')
        prefix = ['nsenter', f'--mount=/proc/{holder.pid}/ns/mnt', '--']
        if user:
            prefix += ['setpriv', f'--reuid={user}', f'--regid={user}', '--init-groups', '--']
        return prefix + list(argv)

    def start(self, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None,
              user: str | None = None, cwd: pathlib.Path | None = None) -> bool:
        """Start `argv` under `name` in the namespace, its output in `logs/NAME.log`; False when it runs already."""
        if self.running(name):
            return False
        self._spawn(name, self.inside(argv, user), env, cwd)
        return True

    def _spawn(self, name: str, argv: Sequence[str], env: Mapping[str, str] | None,
               cwd: pathlib.Path | None = None) -> Identity:
        self._settings.folder('run', mode=0o755)
        self._settings.folder('logs', mode=0o755)
        log = self.log(name)
        if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
            log.rename(log.with_suffix('.log.1'))
        with log.open('ab') as output:
            child = subprocess.Popen(argv, env=self.environment(env), cwd=cwd or '/', stdin=subprocess.DEVNULL,
                                     stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        identity = identify(child.pid)
        if identity is None:
            raise AllInOneError(f'{name} ended at once; see {log}')
        files.write_json(self._record(name), dataclasses.asdict(identity) | {'argv': list(argv)})
        return identity

    def run(self, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None, user: str | None = None,
            stdin: str | None = None, timeout_s: float = 600.0) -> str:
        """Run `argv` in the namespace to its end; its output goes to `logs/NAME.log` and is returned."""
        self._settings.folder('logs', mode=0o755)
        done = subprocess.run(self.inside(argv, user), env=self.environment(env), input=stdin, cwd='/', text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout_s, check=False)
        with self.log(name).open('a') as output:
            output.write(f'$ {" ".join(argv)}\n{done.stdout}')
        if done.returncode != 0:
            tail = '\n'.join(done.stdout.splitlines()[-5:])
            raise AllInOneError(f'{argv[0]} ended with {done.returncode}; see {self.log(name)}\n{tail}')
        return done.stdout

    def must_run(self, name: str) -> None:
        """For use while waiting for a service: an error as soon as its process is gone."""
        if not self.running(name):
            raise AllInOneError(f'{name} ended while it was starting; see {self.log(name)}')

    # ------------------------------------------------------------------ the namespace

    def open_namespace(self, binds: Mapping[pathlib.Path, pathlib.Path]) -> None:
        """The mount namespace, with every `binds` value mounted on its key inside it. Nothing changes outside."""
        if self.running(HOLDER):
            return
        outside = mount_namespace(os.getpid())
        holder = self._spawn(HOLDER, ['unshare', '--mount', '--propagation', 'private', '--',
                                      'sleep', 'infinity'], None)
        deadline = time.monotonic() + 10
        while mount_namespace(holder.pid) == outside:
            self.must_run(HOLDER)
            if time.monotonic() > deadline:
                raise AllInOneError('cannot make a private mount namespace')
            time.sleep(0.01)
        self.must_run(HOLDER)
        for target, source in binds.items():
            source.mkdir(parents=True, exist_ok=True)
            self.run(HOLDER, ['mount', '--bind', str(source), str(target)])

    # ------------------------------------------------------------------ stopping

    def stop(self, name: str, grace_s: float = TERM_GRACE_S) -> None:
        """End the process of this name, then whatever else its session still holds; fine when it is gone."""
        leader = self.identity(name)
        if leader:
            helpers = [member for member in session_members(leader.pid) if member != leader]
            end([leader], grace_s)
            end(helpers)
        self._record(name).unlink(missing_ok=True)

    def stop_all(self, names: Sequence[str], grace_s: float = TERM_GRACE_S) -> None:
        """End these at the same time, so that the slowest sets the pace."""
        with concurrent.futures.ThreadPoolExecutor(max(1, len(names))) as pool:
            list(pool.map(lambda name: self.stop(name, grace_s), names))

    def strangers(self) -> list[Identity]:
        """Processes in the namespace that are neither recorded nor in a recorded one's session: they detached."""
        holder = self.identity(HOLDER)
        if holder is None:
            return []
        namespace = mount_namespace(holder.pid)
        ours = {identity.pid for identity in map(self.identity, self.names()) if identity}
        found = []
        for pid in all_pids():
            fields = stat_fields(pid)
            if fields and mount_namespace(pid) == namespace and int(fields[3]) not in ours:
                identity = identify(pid)
                if identity:
                    found.append(identity)
        return found

    def guests(self) -> list[Identity]:
        """QEMUs: libvirt detaches them and leaves them running when it ends."""
        return [one for one in self.strangers() if command(one.pid).startswith('qemu-system')]

    def stop_guests(self) -> None:
        end(self.guests())

    def sweep(self) -> None:
        """End every process in the private namespace but its holder, then the holder: the namespace is gone."""
        holder = self.identity(HOLDER)
        if holder:
            namespace = mount_namespace(holder.pid)
            pids = [pid for pid in all_pids() if pid != holder.pid and mount_namespace(pid) == namespace]
            end([identity for identity in map(identify, pids) if identity])
        self.stop(HOLDER)
