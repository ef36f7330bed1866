"""The cloud as a whole: what is started and after what, whether it runs, and how it is ended."""

from __future__ import annotations

import contextlib
import fcntl
import pathlib
import shutil
from collections.abc import Callable, Iterator

from . import (
    build,
    cinder,
    debian,
    files,
    glance,
    graph,
    guest_image,
    keystone,
    libvirt,
    mariadb,
    nova,
    placement,
    polluxd,
    rabbitmq,
    requirements,
    venv,
    wait,
    wsgi,
)
from .common import Context
from .errors import AllInOneError
from .process import HOLDER, Processes
from .progress import Progress
from .settings import Settings

NETWORK = 'network'
#: Two cores: more at once only takes turns.
WORKERS = 3
READY_S = 120.0
#: nova-compute waits for its idle worker threads longer than anyone wants to.
SERVICE_GRACE_S = 8.0
MARKER = '.pollux-allinone'


class Cloud:
    def __init__(self, settings: Settings, progress: Progress) -> None:
        self.settings = settings
        self.progress = progress
        self.processes = Processes(settings)
        self.context = Context(settings, self.processes)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One verb at a time changes a state folder."""
        self.settings.state.mkdir(parents=True, exist_ok=True)
        files.write(self.settings.state / MARKER, 'Made by devstack/allinone; `devstack/allinone clean` removes it.\n')
        with (self.settings.state / 'lock').open('w') as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AllInOneError(f'another devstack/allinone works on {self.settings.state}') from None
            yield

    # ------------------------------------------------------------------ up

    def check(self) -> None:
        """Before the first change, the state folder included."""
        requirements.check(self.settings, self.processes)

    def install(self) -> None:
        """Debian packages: what everything else stands on."""
        debian.install(self.progress, self.settings.logs / 'packages.log',
                       debian.SERVICES + debian.BUILD + debian.GUEST, debian.NEWER)

    def up(self) -> None:
        """Start what does not run. Returns when a user's requests will be served."""
        self.processes.open_namespace(libvirt.binds(self.settings))
        graph.run(self._tasks(), WORKERS)
        self._write_openrc()

    def _tasks(self) -> list[graph.Task]:
        context, settings, processes = self.context, self.settings, self.processes
        secrets = context.secrets
        tasks: list[graph.Task] = []

        def add(name: str, action: Callable[[], object], *after: str, log: str | None = None) -> None:
            def timed() -> None:
                with self.progress.step(name, processes.log(log) if log else None):
                    action()
            tasks.append(graph.Task(name, after, timed))

        tasks.append(graph.Task('polluxd built', (), lambda: build.polluxd(settings, self.progress)))
        tasks.append(graph.Task('environment', (), lambda: venv.install_openstack(settings, self.progress)))
        tasks.append(graph.Task('pollux package', ('environment',), self._install_project))
        add('MariaDB', lambda: mariadb.start(settings, processes, secrets['database']), log=mariadb.NAME)
        add('RabbitMQ', lambda: rabbitmq.start(settings, processes, secrets['rabbitmq']), log=rabbitmq.NAME)
        add('guest image', lambda: guest_image.build(settings), log='guest-image')
        add('KVM or emulation', lambda: guest_image.virt_type(settings), 'guest image')
        add('libvirt', self._libvirt, log=libvirt.NAME)
        add('network stand-in', self._network)

        tables = ('environment', 'MariaDB')
        add('keystone tables', lambda: keystone.prepare(context), *tables, log='keystone-setup')
        add('glance tables', lambda: glance.prepare(context), *tables, log='glance-setup')
        add('placement tables', lambda: placement.prepare(context), *tables, log='placement-setup')
        add('nova tables', self._nova_tables, *tables, 'KVM or emulation', log='nova-setup')
        add('cinder tables', lambda: cinder.prepare(context, polluxd.cinder_options(settings)), *tables,
            log='cinder-setup')

        add('keystone', lambda: keystone.start(context), 'keystone tables', log=keystone.NAME)
        add('catalogue', lambda: keystone.populate(context), 'keystone')
        add('polluxd', lambda: polluxd.start(context), 'polluxd built', 'pollux package', log=polluxd.NAME)
        add('glance', lambda: self._api(glance), 'glance tables', 'catalogue', log=glance.NAME)
        add('placement', lambda: self._api(placement), 'placement tables', 'catalogue', log=placement.NAME)
        add('cinder', self._cinder, 'cinder tables', 'catalogue', 'RabbitMQ', 'polluxd', log=cinder.VOLUME)
        add('nova', self._nova, 'nova tables', 'catalogue', 'RabbitMQ', 'placement', log=nova.CONDUCTOR)
        add('nova-compute', self._compute, 'nova', 'libvirt', 'polluxd', 'network stand-in', log=nova.COMPUTE)
        add('volume types', lambda: cinder.ensure_types(cinder.volume_api(context)), 'cinder')
        add('services report', self._report, 'nova-compute', 'volume types')
        return tasks

    def _install_project(self) -> None:
        """A new version of the package takes effect when the services that loaded the old one start again."""
        if venv.install_project(self.settings, self.progress):
            for name in (cinder.VOLUME, cinder.BACKUP, nova.COMPUTE):
                self.processes.stop(name)

    def _libvirt(self) -> None:
        libvirt.start(self.context)
        libvirt.ready(self.context)

    def _network(self) -> None:
        port = self.settings.ports.network
        script = pathlib.Path(__file__).with_name('network_stub.py')
        self.processes.start(NETWORK, ['/usr/bin/python3', '-B', str(script), str(port)])
        wsgi.ready(self.settings, self.processes, NETWORK, port)

    def _api(self, service: wsgi.Service) -> None:
        service.start(self.context)
        service.ready(self.context)

    def _nova_tables(self) -> None:
        nova.prepare(self.context, guest_image.virt_type(self.settings), polluxd.nova_options(self.settings))

    def _cinder(self) -> None:
        cinder.start(self.context)

    def _nova(self) -> None:
        nova.start_control(self.context)
        nova.api_ready(self.context)

    def _compute(self) -> None:
        nova.start_compute(self.context, polluxd.COMPUTE_PROGRAM)
        api = nova.compute_api(self.context)
        wait.until('Nova\'s services report', lambda: nova.services_up(self.context, api), READY_S, 0.5)
        nova.discover(self.context)

    def _report(self) -> None:
        """cinder-volume counts as up once its driver has reached polluxd, and the scheduler knows its pool."""
        api = cinder.volume_api(self.context)
        wait.until('Cinder\'s services report', lambda: cinder.services_up(self.context, api), READY_S, 0.5,
                   hint=f'see {self.processes.log(cinder.VOLUME)}')

    # ------------------------------------------------------------------ what a user needs

    def user_environment(self) -> dict[str, str]:
        """By which the `openstack` command finds the cloud."""
        return {
            'OS_AUTH_URL': self.context.keystone_url,
            'OS_USERNAME': 'admin',
            'OS_PASSWORD': self.context.secrets['admin'],
            'OS_PROJECT_NAME': 'admin',
            'OS_USER_DOMAIN_ID': 'default',
            'OS_PROJECT_DOMAIN_ID': 'default',
            'OS_IDENTITY_API_VERSION': '3',
            'OS_REGION_NAME': self.settings.region,
        }

    @property
    def openrc(self) -> pathlib.Path:
        return self.settings.state / 'openrc'

    def _write_openrc(self) -> None:
        lines = ['# . this file, then use: openstack, polluxctl']
        lines += [f'export {key}={value}' for key, value in self.user_environment().items()]
        lines += [f'export {key}={value}' for key, value in polluxd.client_environment(self.settings).items()]
        lines += [f'export PATH={self.settings.venv}/bin:$PATH', '']
        files.write(self.openrc, '\n'.join(lines), mode=0o600)

    # ------------------------------------------------------------------ state

    def is_up(self) -> bool:
        """Every process that `up` starts is alive."""
        names = self.processes.names()
        return {HOLDER, nova.COMPUTE, cinder.VOLUME, cinder.BACKUP, polluxd.NAME} <= set(names) and all(
            self.processes.running(name) for name in names)

    # ------------------------------------------------------------------ down

    def down(self) -> None:
        """End everything that was started: OpenStack first, then guests, then what serves their disks."""
        names = self.processes.names()
        if not names:
            return
        last = (libvirt.NAME, polluxd.NAME, mariadb.NAME, rabbitmq.NAME, rabbitmq.EPMD)
        first = [name for name in reversed(names) if name not in last and name != HOLDER]
        with self.progress.step('OpenStack services stopped'):
            self.processes.stop_all(first, SERVICE_GRACE_S)
        with self.progress.step('guests and libvirt stopped'):
            self.processes.stop(libvirt.NAME)
            self.processes.stop_guests()
        with self.progress.step('polluxd, MariaDB and RabbitMQ stopped'):
            self.processes.stop_all([name for name in last if name in names])
            self.processes.sweep()

    def clean(self) -> None:
        """Remove the state folder with all that is in it. Nothing may run any more."""
        state = self.settings.state
        if not state.exists():
            return
        if not (state / MARKER).exists():
            raise AllInOneError(f'{state} was not made by devstack/allinone, so it is left alone')
        with self.progress.step(f'{state} removed'):
            shutil.rmtree(state)
