"""Nova: API, conductor, scheduler, and one compute node with libvirt and QEMU."""

from __future__ import annotations

import pathlib
from typing import Any

from . import files, wsgi
from .common import Context, pool_limits
from .identity import Api, login
from .settings import LOOPBACK

API, CONDUCTOR, SCHEDULER, COMPUTE = 'nova-api', 'nova-conductor', 'nova-scheduler', 'nova-compute'
STAMP = '1'


def config_path(context: Context) -> pathlib.Path:
    return context.settings.etc / 'nova' / 'nova.conf'


def instances_path(context: Context) -> pathlib.Path:
    return context.settings.folder('data', 'nova', 'instances')


def prepare(context: Context, virt_type: str, pollux: dict[str, Any]) -> None:
    """`pollux`: the options of section [pollux] by which nova-compute reaches its local polluxd."""
    settings = context.settings
    sections: dict[str, dict[str, Any]] = {
        'DEFAULT': {
            'use_stderr': True,
            'host': settings.host,
            'my_ip': LOOPBACK,
            'state_path': settings.folder('data', 'nova'),
            'instances_path': instances_path(context),
            'transport_url': context.transport,
            'compute_driver': 'libvirt.LibvirtDriver',
            'reserved_host_memory_mb': 512,
            'reserved_host_disk_mb': 0,
            'cpu_allocation_ratio': 16,
            'force_config_drive': False,
            'instance_usage_audit': False,
            # Guests here boot in seconds under emulation or not at all.
            'block_device_allocate_retries': 600,
            'block_device_allocate_retries_interval': 1,
            'log_options': False,
        },
        'api': {'auth_strategy': 'keystone'},
        'api_database': pool_limits(context.database('nova_api')),
        'database': pool_limits(context.database('nova')),
        'cache': {'enabled': False},
        'cinder': context.credentials('nova') | {'catalog_info': 'volumev3::publicURL',
                                                 'os_region_name': settings.region},
        'conductor': {'workers': 1},
        'scheduler': {'workers': 1, 'discover_hosts_in_cells_interval': 10},
        'filter_scheduler': {'track_instance_changes': False},
        'glance': context.credentials('nova') | {'valid_interfaces': 'public'},
        'keystone_authtoken': context.authtoken('nova'),
        'libvirt': {
            'virt_type': virt_type,
            'cpu_mode': 'none' if virt_type == 'qemu' else 'host-passthrough',
            'connection_uri': 'qemu:///system',
            # PCIe root ports are the slots that volumes are hot-plugged into.
            'num_pcie_ports': 16,
            'hw_machine_type': 'x86_64=q35',
        },
        'neutron': context.credentials('nova'),
        'notifications': {'notification_format': 'unversioned'},
        'os_vif_ovs': {'ovsdb_connection': ''},
        'oslo_concurrency': {'lock_path': settings.folder('data', 'nova', 'locks')},
        'oslo_messaging_rabbit': context.rabbit_options,
        'placement': context.credentials('placement'),
        'pollux': pollux,
        'service_user': context.service_user('nova'),
        'vnc': {'enabled': False},
        'spice': {'enabled': False},
        'wsgi': {'api_paste_config': settings.venv / 'etc' / 'nova' / 'api-paste.ini'},
    }
    sections |= context.privsep(config_path(context), 'nova_sys_admin', 'privsep_osbrick')
    files.write_ini(config_path(context), sections)
    if not context.once('nova', STAMP):
        return
    manage = ['nova-manage', f'--config-file={config_path(context)}']
    run = context.processes.run
    run('nova-setup', [*manage, 'api_db', 'sync'])
    run('nova-setup', [*manage, 'cell_v2', 'map_cell0', '--database_connection', context.database('nova_cell0')])
    cells = run('nova-setup', [*manage, 'cell_v2', 'list_cells'])
    if 'cell1' not in cells:
        run('nova-setup', [*manage, 'cell_v2', 'create_cell', '--name', 'cell1'])
    run('nova-setup', [*manage, 'db', 'sync'])
    context.done('nova', STAMP)


def start_control(context: Context) -> None:
    settings = context.settings
    argument = f'--config-file={config_path(context)}'
    # The first of the files is the one that paste reads.
    paste = settings.venv / 'etc' / 'nova' / 'api-paste.ini'
    wsgi.start(settings, context.processes, API, 'nova.wsgi.osapi_compute', settings.ports.nova,
               env={'OS_NOVA_CONFIG_DIR': str(settings.etc / 'nova'),
                    'OS_NOVA_CONFIG_FILES': f'{paste};{config_path(context)}'})
    context.processes.start(CONDUCTOR, ['nova-conductor', argument])
    context.processes.start(SCHEDULER, ['nova-scheduler', argument])


def start_compute(context: Context, program: str) -> None:
    """`program`: nova-compute, or the wrapper that loads the Pollux volume driver into it first."""
    context.processes.start(COMPUTE, [program, f'--config-file={config_path(context)}'])


def api_ready(context: Context) -> None:
    wsgi.ready(context.settings, context.processes, API, context.settings.ports.nova)


def compute_api(context: Context) -> Api:
    token, _ = login(context.keystone_url, 'admin', context.secrets['admin'], 'admin')
    return Api(context.settings.url(context.settings.ports.nova, '/v2.1'), token)


def services_up(context: Context, api: Api) -> bool:
    """Conductor, scheduler and compute have reported lately, and the compute host is mapped to its cell."""
    for name in (CONDUCTOR, SCHEDULER, COMPUTE):
        context.processes.must_run(name)
    up = {one['binary'] for one in api.get('/os-services')['services'] if one['state'] == 'up'}
    if not {CONDUCTOR, SCHEDULER, COMPUTE} <= up:
        return False
    return bool(api.get('/os-hypervisors')['hypervisors'])


def discover(context: Context) -> None:
    """Map the compute host to its cell now instead of at the scheduler's next round."""
    context.processes.run('nova-setup', ['nova-manage', f'--config-file={config_path(context)}', 'cell_v2',
                                         'discover_hosts'])
