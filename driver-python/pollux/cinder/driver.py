"""The Cinder volume driver. Configure a back end with

    volume_driver = pollux.cinder.driver.PolluxDriver
    pollux_address = storage-host:9640
    pollux_ca = /etc/pollux/certs/ca.pem
    pollux_certificate = /etc/pollux/certs/cinder.pem
    pollux_key = /etc/pollux/certs/cinder-key.pem

Every pool of the service is a pool of the back end. A volume has the same UUID here and there, so every call may be
repeated. Extra specs of a type: `pollux:transport` (scsi, the default, or blk), `pollux:scsi_names` (pollux, the
default, or qemu) and `pollux:provisioning` (thin, the default, or thick).
"""

from __future__ import annotations

import contextlib
import functools
import uuid
from collections.abc import Iterator
from typing import Any

from cinder import exception, interface
from cinder.message import api as message_api
from cinder.message import message_field
from cinder.objects import fields
from cinder.volume import configuration as config
from cinder.volume import driver, volume_utils
from oslo_config import cfg
from oslo_log import log as logging
from oslo_utils import units

from pollux import __version__, brick, connection, errors, nbd
from pollux import options as client_options
from pollux.brick import clients
from pollux.brick import connector as brick_connector
from pollux.cinder import images, moves, types
from pollux.cinder.errors import mapped
from pollux.client import Client
from pollux.rpc import ttypes as rpc

LOG = logging.getLogger(__name__)

#: Names what is made on the way to something else, so that a repetition finds it.
_NAMESPACE = uuid.UUID('0a4c2f86-90a5-5dc5-9d8e-0f6b4a2b7c11')
_API_VERSION = 3
_API_WITH_BURSTS = 5
#: A service that does not answer the periodic question for so long is down. Shorter than the pause between two
#: questions, so that one which hangs does not keep cinder-volume from asking the other back ends.
_STATS_DEADLINE_MS = 10_000
#: What is said of a pool that takes no changes. Cinder's scheduler does not look at the state, and for thin volumes at
#: the total alone, not at what is free.
_DOWN = {'backend_state': 'down', 'total_capacity_gb': 0, 'free_capacity_gb': 0}
#: Key of a connector: the grant that the host got for it, by volume. Cinder keeps the connector with the attachment.
GRANTS_PROPERTY = 'pollux_grants'
#: Of authorisations from before there were grants.
_NO_GRANT = str(uuid.UUID(int=0))

cfg.CONF.register_opts(client_options.client_opts, group=config.SHARED_CONF_GROUP)


def list_opts() -> list[tuple[str, list[Any]]]:
    return [(config.SHARED_CONF_GROUP, client_options.client_opts)]


@interface.volumedriver
class PolluxDriver(driver.VolumeDriver):
    """Volumes on the Pollux storage service.

    Version history:
        0.1.0 - first version
    """

    VERSION = __version__
    CI_WIKI_NAME = 'Pollux_CI'

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.configuration.append_config_values(client_options.client_opts)
        self._client: Client | None = None

    @staticmethod
    def get_driver_options() -> list[Any]:
        return client_options.client_opts

    @property
    def client(self) -> Client:
        if self._client is None:
            raise errors.Misconfigured('do_setup has not been called, or has failed')
        return self._client

    # ------------------------------------------------------------------ start

    @mapped
    def do_setup(self, context: Any) -> None:
        given = client_options.given(self.configuration)
        self._client = Client.load(given)
        # cinder-volume asks os-brick for the properties of this host.
        brick.register()
        clients.configure(given)

    @mapped
    def check_for_setup_error(self) -> None:
        try:
            service = self._describe()
            if not self.client.pool_list():
                LOG.warning('polluxd at %s has no pool: there is nowhere to create volumes until it has one '
                            '(polluxctl pool create)', self.client.settings.address)
            LOG.info('polluxd %s, host %s, at %s', service.version, service.host_id, self.client.settings.address)
            moves.finish(self.client)
        except errors.Unreachable as error:
            # Cinder would not try again after a few seconds: the back end is down until the service is there.
            LOG.error('The back end is down until polluxd answers: %s', error)

    def _describe(self, **options: Any) -> rpc.ServiceInfo:
        service = self.client.describe(**options)
        if service.api_version < _API_VERSION:
            raise errors.Unsupported(f'polluxd {service.version} at {self.client.settings.address} speaks version '
                                     f'{service.api_version} of the contract, and {_API_VERSION} is needed: upgrade it')
        return service

    # ------------------------------------------------------------------ volumes

    def _pool(self, volume: Any) -> str:
        pool = volume_utils.extract_host(volume.host, level='pool')
        if not pool:
            raise errors.Invalid(f"'{volume.host}' names no pool")
        return str(pool)

    def _spec(self, volume: Any) -> rpc.VolumeSpec:
        return rpc.VolumeSpec(volume_id=volume.name_id, name=volume.name, size_bytes=volume.size * units.Gi,
                              provisioning=types.provisioning(types.extra_specs(volume)))

    @contextlib.contextmanager
    def _new_volume(self, volume: Any) -> Iterator[contextlib.ExitStack]:
        """Inside, a volume is made; it gets its limits at the end, and is deleted again if anything fails."""
        types.refuse_encryption(volume)
        types.transport(types.extra_specs(volume))
        types.scsi_names(types.extra_specs(volume))
        with contextlib.ExitStack() as undo:
            yield undo
            undo.callback(self._undo_delete, volume.name_id)
            self._limit(volume, types.kind(volume), volume.size)
            undo.pop_all()

    def _limit(self, volume: Any, kind: Any, size_gib: int) -> None:
        """Have the service enforce what the type says by now. Cinder tells no driver that a specification changed."""
        wanted = types.limits(kind, size_gib)
        if types.same_limits(self.client.volume_describe(volume.name_id).qos, wanted):
            return
        if types.has_bursts(wanted) and self.client.describe().api_version < _API_WITH_BURSTS:
            LOG.warning('Volume %s gets no bursts above its limits: polluxd at %s is too old for them', volume.id,
                        self.client.settings.address)
        LOG.info('Volume %s gets the limits %s', volume.id, wanted)
        self.client.volume_set_qos(volume.name_id, wanted)

    def _undo_delete(self, volume_id: str) -> None:
        try:
            self.client.volume_delete(volume_id)
        except errors.PolluxError as error:
            LOG.warning('%s stays on the service until its volume is deleted: %s', volume_id, error)

    @mapped
    def create_volume(self, volume: Any) -> None:
        with self._new_volume(volume):
            self.client.volume_create(self._pool(volume), self._spec(volume))

    @mapped
    def delete_volume(self, volume: Any) -> None:
        self.client.volume_delete(volume.name_id)

    @mapped
    def extend_volume(self, volume: Any, new_size: int) -> None:
        self.client.volume_extend(volume.name_id, new_size * units.Gi)
        self._limit(volume, types.kind(volume), new_size)

    @mapped
    def create_snapshot(self, snapshot: Any) -> None:
        self.client.snapshot_create(snapshot.volume.name_id, snapshot.id, snapshot.name)

    @mapped
    def delete_snapshot(self, snapshot: Any) -> None:
        try:
            self.client.volume_delete(snapshot.id)
        except errors.Busy as error:
            LOG.warning('Snapshot %s is not deleted: %s', snapshot.id, error)
            raise exception.SnapshotIsBusy(snapshot_name=snapshot.name) from error

    @mapped
    def create_volume_from_snapshot(self, volume: Any, snapshot: Any) -> None:
        with self._new_volume(volume) as undo:
            self._from_snapshot(volume, snapshot.id, undo)

    @mapped
    def create_cloned_volume(self, volume: Any, src_vref: Any) -> None:
        with (self._new_volume(volume) as undo,
              self._momentary_snapshot(src_vref.name_id, f'clone/{volume.name_id}') as snapshot):
            self._from_snapshot(volume, snapshot, undo)

    @mapped
    def revert_to_snapshot(self, context: Any, volume: Any, snapshot: Any) -> None:
        self.client.volume_revert(volume.name_id, snapshot.id)

    @contextlib.contextmanager
    def _momentary_snapshot(self, volume_id: str, purpose: str) -> Iterator[str]:
        snapshot_id = str(uuid.uuid5(_NAMESPACE, f'{volume_id}/{purpose}'))
        self.client.snapshot_create(volume_id, snapshot_id, f'tmp-{snapshot_id}')
        try:
            yield snapshot_id
        finally:
            self._undo_delete(snapshot_id)

    def _from_snapshot(self, volume: Any, snapshot_id: str, undo: contextlib.ExitStack) -> None:
        """Share the snapshot's clusters within its pool, copy them into another."""
        pool, source = self._pool(volume), self.client.volume_describe(snapshot_id)
        if pool in (source.pool, self.client.pool_describe(source.pool).pool_id):
            self.client.volume_clone(snapshot_id, self._spec(volume))
            return
        spec = self._spec(volume)
        # What is in it was made for blocks of that size.
        spec.block_bytes = source.block_bytes
        self.client.volume_create(pool, spec)
        undo.callback(self._undo_delete, volume.name_id)
        moves.copy(self.client, snapshot_id, volume.name_id)

    # ------------------------------------------------------------------ images

    @mapped
    def copy_image_to_volume(self, context: Any, volume: Any, image_service: Any, image_id: str,
                             disable_sparse: bool = False) -> None:
        try:
            open_target = functools.partial(nbd.open_volume, self.client, volume.name_id, read_only=False,
                                            request_id=context.request_id)
            # Cinder sets disable_sparse for a volume that has been used.
            images.image_to_volume(context, image_service, image_id, open_target, volume.size,
                                   zeroed=not disable_sparse)
        except (exception.ImageUnacceptable, exception.ImageTooBig, exception.ImageConversionNotAllowed):
            # Cinder has messages of its own for these.
            raise
        except Exception:
            self._tell_user(context, volume, message_field.Action.COPY_IMAGE_TO_VOLUME,
                            message_field.Detail.DRIVER_FAILED_CREATE)
            raise

    def copy_image_to_encrypted_volume(self, context: Any, volume: Any, image_service: Any, image_id: str,
                                       disable_sparse: bool = False) -> None:
        raise exception.NotSupportedOperation(operation='copy an image to an encrypted volume')

    @mapped
    def copy_volume_to_image(self, context: Any, volume: Any, image_service: Any, image_meta: dict[str, Any]) -> None:
        # From a snapshot: a guest may be writing.
        with (self._momentary_snapshot(volume.name_id, f'image/{image_meta["id"]}') as snapshot,
              nbd.open_volume(self.client, snapshot, read_only=True, request_id=context.request_id) as source):
            images.volume_to_image(context, source, volume, image_service, image_meta)

    def _tell_user(self, context: Any, volume: Any, action: Any, detail: Any) -> None:
        try:
            message_api.API().create(context, action, resource_uuid=volume.id, detail=detail)
        except Exception:
            # The failure that the message is about must come out, not this one.
            LOG.exception('The user is not told of the failure of volume %s', volume.id)

    # ------------------------------------------------------------------ attachments

    def validate_connector(self, connector: dict[str, Any]) -> None:
        if not _host(connector):
            raise exception.InvalidConnectorException(missing='host')

    @mapped
    def initialize_connection(self, volume: Any, connector: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        types.refuse_encryption(volume)
        specs = types.extra_specs(volume)
        transport, scsi_names = types.transport(specs), types.scsi_names(specs)
        home = self.client.describe().host_id
        self._limit(volume, types.kind(volume), volume.size)
        grant = str(uuid.uuid4())
        self.client.authorise(rpc.Authorisation(volume_id=volume.name_id, host=_host(connector), read_only=False,
                                                grant_id=grant))
        # The one thing of an attachment that Cinder gives to both calls is this dictionary.
        connector.setdefault(GRANTS_PROPERTY, {})[volume.name_id] = grant
        made = connection.Connection(volume_id=volume.name_id, transport=transport, home=home,
                                     serial=connection.serial_of(volume.name_id, transport),
                                     scsi_names=scsi_names if transport == connection.SCSI else connection.OWN_NAMES)
        return {'driver_volume_type': connection.PROTOCOL, 'data': {**made.as_data(), 'discard': True}}

    @mapped
    def terminate_connection(self, volume: Any, connector: dict[str, Any] | None, **kwargs: Any) -> bool:
        """Whether other attachments go on. Each has a grant of its own, so that it does not matter which ends first, or
        whether they end at the same time. Without a connector, every connection ends."""
        attached = [one for one in volume.volume_attachment
                    if one.attach_status != fields.VolumeAttachStatus.DETACHED]
        if connector is None:
            self.client.unauthorise(volume.name_id, '')
            return False
        host, grant = _host(connector), _grant(connector, volume)
        if not host:
            LOG.warning('A connection of volume %s that names no host is not ended: none was made for it', volume.id)
        elif grant:
            self.client.unauthorise(volume.name_id, host, grant)
        else:
            self._end_unclaimed(volume, host, attached)
        return len(attached) > 1

    def _end_unclaimed(self, volume: Any, host: str, attached: list[Any]) -> None:
        """End the host's connections that no attachment of Cinder stands for: those of a service that copies on another
        host, where the connector was a copy, and those from before there were grants."""
        here = [one.connector for one in attached if one.connector and _host(one.connector) == host]
        claimed = {_grant(one, volume) for one in here}
        if [_grant(one, volume) for one in here].count('') > 1:
            claimed.add(_NO_GRANT)
        under_way = any(not one.connector for one in attached)
        for held in self.client.authorisation_list(volume.name_id):
            if held.host != host or held.grant_id in claimed:
                continue
            if held.grant_id != _NO_GRANT and under_way:
                # It may be that of an attachment which Cinder is about to record.
                LOG.info('Host %s keeps its grant %s of volume %s for now', host, held.grant_id, volume.id)
                continue
            self.client.unauthorise(volume.name_id, host, held.grant_id)

    def create_export(self, context: Any, volume: Any, connector: dict[str, Any]) -> None:
        """A volume is reachable by who is authorised; nothing has to be exported."""

    def ensure_export(self, context: Any, volume: Any) -> None:
        """The service puts attachments back by itself when it starts."""

    def remove_export(self, context: Any, volume: Any) -> None:
        """See create_export."""

    # ------------------------------------------------------------------ types and statistics

    @mapped
    def retype(self, context: Any, volume: Any, new_type: Any, diff: dict[str, Any], host: dict[str, Any]) -> Any:
        """Transport, names and QoS change in place; the first two count from the next attachment on."""
        specs = new_type.extra_specs or {}
        types.transport(specs)
        types.scsi_names(specs)
        if diff.get('encryption') or types.provisioning(specs) != types.provisioning(types.extra_specs(volume)):
            return False, None
        if host['host'] != volume.host and not self._move(volume, host):
            return False, None
        self._limit(volume, new_type, volume.size)
        return True, None

    @mapped
    def migrate_volume(self, context: Any, volume: Any, host: dict[str, Any]) -> Any:
        """Between pools of one service. Between services, Cinder copies by itself."""
        if not self._move(volume, host):
            return False, None
        self._limit(volume, types.kind(volume), volume.size)
        return True, None

    def _move(self, volume: Any, host: dict[str, Any]) -> bool:
        """Take the volume to another pool of this back end. False when it is not one, or the volume is in use."""
        there, here = (volume_utils.extract_host(one, level='backend') for one in (host['host'], volume.host))
        pool = volume_utils.extract_host(host['host'], level='pool')
        if there != here or not pool or volume.volume_attachment:
            return False
        moves.move(self.client, str(pool), self._spec(volume))
        return True

    @mapped
    def update_migrated_volume(self, context: Any, volume: Any, new_volume: Any, original_volume_status: str) -> Any:
        """Cinder has copied a volume here as `new_volume`; a guest is to see it by the id that the user knows."""
        spec = rpc.VolumeSpec(volume_id=volume.id, name=moves.CONF.volume_name_template % volume.id,
                              size_bytes=new_volume.size * units.Gi,
                              provisioning=types.provisioning(types.extra_specs(new_volume)))
        if not moves.rename(self.client, new_volume.name_id, spec):
            # Cinder remembers the other id then.
            raise NotImplementedError
        self.client.volume_set_qos(volume.id, types.limits(types.kind(new_volume), new_volume.size))
        return {'_name_id': None}

    @mapped
    def _update_volume_stats(self) -> None:
        try:
            service = self._describe(deadline_ms=_STATS_DEADLINE_MS)
            pools = self.client.pool_list(deadline_ms=_STATS_DEADLINE_MS)
        except errors.PolluxError as error:
            LOG.error('The back end is down: %s', error)
            self._stats = self._stats_while_down()
            return
        shared = {
            'backend_state': 'up',
            'thin_provisioning_support': True,
            'thick_provisioning_support': True,
            'online_extend_support': True,
            'multiattach': True,
            'QoS_support': 'qos' in service.capabilities,
            'reserved_percentage': self.configuration.safe_get('reserved_percentage') or 0,
            'max_over_subscription_ratio': volume_utils.get_max_over_subscription_ratio(
                self.configuration.safe_get('max_over_subscription_ratio'), supports_auto=True),
            'filter_function': self.get_filter_function(),
            'goodness_function': self.get_goodness_function(),
        }
        self._stats = {
            **self._constant_stats(),
            'pools': [{
                'pool_name': pool.name,
                'total_capacity_gb': pool.capacity_bytes / units.Gi,
                'free_capacity_gb': pool.free_bytes / units.Gi,
                'provisioned_capacity_gb': pool.provisioned_bytes / units.Gi,
                'total_volumes': pool.volumes,
                **shared,
                **(_DOWN if pool.failure else {}),
            } for pool in pools],
        }

    def _constant_stats(self) -> dict[str, Any]:
        return {
            'volume_backend_name': self.configuration.safe_get('volume_backend_name') or 'pollux',
            'vendor_name': 'Pollux',
            'driver_version': self.VERSION,
            'storage_protocol': connection.PROTOCOL,
            'shared_targets': False,
            'sparse_copy_volume': True,
            'clone_across_pools': True,
        }

    def _stats_while_down(self) -> dict[str, Any]:
        """The pools that were seen before; one that stands for them when none was."""
        pools = (self._stats or {}).get('pools')
        if not pools:
            return {**self._constant_stats(), 'reserved_percentage': 0, **_DOWN}
        return {**self._constant_stats(), 'pools': [{**pool, **_DOWN} for pool in pools]}


def _host(connector: dict[str, Any]) -> str:
    """The name in the host's certificate where our connector gave it, else Nova's name of the host."""
    return str(connector.get(brick_connector.HOST_PROPERTY) or connector.get('host') or '')


def _grant(connector: dict[str, Any], volume: Any) -> str:
    """The grant that `initialize_connection` left in the connector; empty when it is not there."""
    return str((connector.get(GRANTS_PROPERTY) or {}).get(volume.name_id, ''))
