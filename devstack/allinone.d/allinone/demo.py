"""What a user would do, through the ordinary `openstack` command, with a check after each step.

The guest is the witness: its console says which disk it booted from and what it read and wrote (`tests/README.md` has
the lines). What the steps found is kept as facts, so that a test can ask for them.
"""

from __future__ import annotations

from typing import Any

from . import cinder, guest_image, nova, polluxd
from .cloud import Cloud
from .errors import AllInOneError
from .openstack import SERVER_S, VOLUME_S, OpenStack

PREFIX = 'pollux-demo'
IMAGE, FLAVOR = f'{PREFIX}-image', f'{PREFIX}-flavor'
SUM = '([0-9a-f]{64})'
VOLUME, SNAPSHOT, SERVER = ('volume',), ('volume', 'snapshot'), ('server',)


def expect(what: str, actual: object, wanted: object) -> None:
    if actual != wanted:
        raise AllInOneError(f'{what}: {actual!r}, not {wanted!r}')


def guest_serial(volume_id: str, transport: str) -> str:
    """What the guest shows as the disk's serial: virtio-blk has room for 20 characters (VIRTIO 1.2 5.2.6)."""
    return volume_id if transport == 'scsi' else volume_id[:20]


class Demo:
    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._progress = cloud.progress
        self._openstack: OpenStack | None = None
        self.facts: dict[str, Any] = {}

    @property
    def openstack(self) -> OpenStack:
        """Made at first use: the cloud's passwords exist once it is up."""
        if self._openstack is None:
            environment = self._cloud.processes.environment(self._cloud.user_environment())
            context = self._cloud.context
            self._openstack = OpenStack(self._cloud.settings.program('openstack'), environment, self._progress,
                                        lambda: nova.compute_api(context), lambda: cinder.volume_api(context))
        return self._openstack

    # ------------------------------------------------------------------ the tour

    def run(self) -> None:
        """The whole path over vhost-user-scsi, then a shorter one over vhost-user-blk. Whatever fails, what was made
        is deleted again."""
        self._remove_leftovers()
        before = polluxd.pool(self._cloud.context)
        self.facts['pool_before'] = before
        try:
            self._image()
            self._pass('pollux', snapshots=True)
            self._pass('pollux-blk', snapshots=False)
        except AllInOneError:
            for clearing_up in (self._save_consoles, self._remove_leftovers):
                try:
                    clearing_up()
                except AllInOneError as further:
                    self._progress.plain(f'           while clearing up: {further}')
            raise
        with self._progress.step('everything is deleted, the pool is as empty as before') as step:
            self._remove_leftovers()
            after = polluxd.await_pool_like(self._cloud.context, before)
            self.facts['pool_after'] = after
            step.note = f'{after["volumes"]} volumes, {after["allocated_bytes"]} bytes of data'

    def _image(self) -> None:
        openstack = self.openstack
        with self._progress.step('image create'):
            path = guest_image.path(self._cloud.settings)
            image = openstack.create('image', 'create', '--disk-format', 'raw', '--container-format', 'bare',
                                     '--file', str(path), IMAGE)
            expect('image status', openstack.show('image', 'show', str(image['id']))['status'], 'active')
            openstack.create('flavor', 'create', '--ram', '256', '--disk', '0', '--vcpus', '1', FLAVOR)

    def _pass(self, kind: str, snapshots: bool) -> None:
        transport = cinder.TYPES[kind]
        server, boot, data = (f'{PREFIX}-{transport}-{role}' for role in ('server', 'boot', 'data'))
        facts = self.facts.setdefault(transport, {})
        openstack = self.openstack

        with self._progress.step(f'{transport}: volume create --image') as step:
            volume = openstack.create('volume', 'create', '--image', IMAGE, '--size', '1', '--type', kind, boot)
            volume = openstack.await_volume(boot, 'available')
            expect('bootable', str(volume['bootable']).lower(), 'true')
            facts['boot_volume'] = volume['id']
            step.note = str(volume['id'])

        with self._progress.step(f'{transport}: server create --volume'):
            openstack.create('server', 'create', '--flavor', FLAVOR, '--volume', boot, '--nic', 'none', server)
            openstack.await_status(SERVER, server, 'active', SERVER_S)
            openstack.await_volume(boot, 'in-use')

        with self._progress.step(f'{transport}: the guest booted from the volume') as step:
            serial = guest_serial(str(volume['id']), transport)
            # A console may be read while it is written: the line is whole when its last word is.
            line = openstack.await_console(server, rf'^@@POLLUX-BOOTED (.* serial=\S{{{len(serial)}}})').group(1)
            words = dict(word.split('=', 1) for word in line.split() if '=' in word)
            expect('serial of the boot disk', words['serial'], serial)
            expect('boots counted on the disk', words['boots'], '1')
            facts['booted'] = words
            step.note = f'{words["dev"]}, serial {words["serial"]}'

        with self._progress.step(f'{transport}: volume create and hot attach') as step:
            openstack.create('volume', 'create', '--size', '1', '--type', kind, data)
            second = openstack.await_volume(data, 'available')
            start = len(openstack.console(server))
            openstack.run('server', 'add', 'volume', server, data)
            openstack.await_volume(data, 'in-use')
            added = openstack.await_console(server, rf'^@@DISK-ADDED dev=(\S+) .*serial='
                                                    rf'{guest_serial(str(second["id"]), transport)}\b', after=start)
            facts['data_volume'] = second['id']
            step.note = f'/dev/{added.group(1)} in the guest'

        with self._progress.step(f'{transport}: written and read back in the guest') as step:
            verified = openstack.await_console(server, rf'^@@DISK-VERIFIED dev={added.group(1)} sha256={SUM}',
                                               after=start)
            facts['written_sha256'] = verified.group(1)
            step.note = f'sha256 {verified.group(1)[:16]}...'

        with self._progress.step(f'{transport}: hot detach'):
            openstack.run('server', 'remove', 'volume', server, data)
            openstack.await_volume(data, 'available')
            openstack.await_console(server, rf'^@@DISK-REMOVED dev={added.group(1)}$', after=start)

        if snapshots:
            self._snapshot(kind, server, data, str(facts['written_sha256']), facts)

        with self._progress.step(f'{transport}: server and volumes deleted'):
            facts['console'] = openstack.console(server)
            openstack.run('server', 'delete', '--wait', server)
            self._remove_leftovers(only=f'{PREFIX}-{transport}-')

    def _snapshot(self, kind: str, server: str, data: str, written: str, facts: dict[str, Any]) -> None:
        transport = cinder.TYPES[kind]
        openstack = self.openstack
        snapshot, copy = f'{PREFIX}-{transport}-snapshot', f'{PREFIX}-{transport}-copy'
        with self._progress.step(f'{transport}: volume snapshot create'):
            openstack.create('volume', 'snapshot', 'create', '--volume', data, snapshot)
            openstack.await_status(SNAPSHOT, snapshot, 'available', VOLUME_S)
        with self._progress.step(f'{transport}: a volume from the snapshot holds the same bytes') as step:
            openstack.create('volume', 'create', '--snapshot', snapshot, '--size', '1', '--type', kind, copy)
            third = openstack.await_volume(copy, 'available')
            start = len(openstack.console(server))
            openstack.run('server', 'add', 'volume', server, copy)
            openstack.await_volume(copy, 'in-use')
            added = openstack.await_console(
                server, rf'^@@DISK-ADDED dev=(\S+) .*serial={guest_serial(str(third["id"]), transport)} '
                        rf'sha256={SUM}', after=start)
            facts['copy_volume'], facts['copy_sha256'] = third['id'], added.group(2)
            expect('sha256 of the copy in the guest', added.group(2), written)
            openstack.run('server', 'remove', 'volume', server, copy)
            openstack.await_volume(copy, 'available')
            step.note = f'sha256 {written[:16]}... again'

    # ------------------------------------------------------------------ leaving nothing behind

    def _names(self, kind: tuple[str, ...], prefix: str) -> list[str]:
        lines = self.openstack.quiet(*kind, 'list', '-f', 'value', '-c', 'Name').splitlines()
        return sorted({line for line in lines if line.startswith(prefix)})

    def _remove_leftovers(self, only: str = '') -> None:
        """Delete what the demo made, now or in a run that was cut short; `only` narrows it to names that begin so."""
        openstack = self.openstack
        prefix = only or f'{PREFIX}-'
        for server in self._names(SERVER, prefix):
            openstack.run('server', 'delete', '--wait', server)
        for snapshot in self._names(SNAPSHOT, prefix):
            openstack.run('volume', 'snapshot', 'delete', snapshot)
            openstack.await_gone(SNAPSHOT, snapshot)
        volumes = self._names(VOLUME, prefix)
        if volumes:
            openstack.run('volume', 'delete', *volumes)
            for volume in volumes:
                openstack.await_gone(VOLUME, volume)
        if not only:
            for kind in ('image', 'flavor'):
                for name in self._names((kind,), prefix):
                    openstack.run(kind, 'delete', name)

    def _save_consoles(self) -> None:
        """Guests' consoles, for whoever looks into a failure."""
        for server in self._names(SERVER, f'{PREFIX}-'):
            path = self._cloud.settings.folder('logs') / f'console-{server}.log'
            path.write_text(self.openstack.console(server))
            self._progress.plain(f'           console of {server}: {path}')

    # ------------------------------------------------------------------ results

    def report(self, failure: AllInOneError | None) -> dict[str, Any]:
        """For `--json`: steps, facts, and what went wrong."""
        return {
            'ok': failure is None,
            'failure': str(failure) if failure else None,
            'seconds': round(self._progress.elapsed_s(), 1),
            'steps': [{'name': step.name, 'seconds': round(step.seconds, 1), 'result': step.result,
                       'note': step.note} for step in self._progress.steps],
            'facts': self.facts,
        }

    def summary(self) -> str:
        scsi = self.facts['scsi']
        return (f'A guest booted from volume {scsi["boot_volume"]} over vhost-user-scsi and another over '
                f'vhost-user-blk.\nWhat the guest wrote to volume {scsi["data_volume"]} was read back, and again '
                f'from a volume made of its snapshot\n(sha256 {scsi["copy_sha256"]}).\n'
                f'Everything was deleted and the pool is as empty as before.')
