#!/bin/bash
# devstack plugin: builds and runs polluxd, and makes it Cinder's back end and a volume driver of Nova.
#
# In local.conf:  enable_plugin pollux <this repository>
# devstack sources this file once for each phase; `settings` has the variables.

# Save trace setting
_XTRACE_POLLUX=$(set +o | grep xtrace)
set +o xtrace

POLLUXD_BIN=$POLLUX_DIR/build/release/service/polluxd
POLLUXD_CONF=$POLLUX_CONF_DIR/polluxd.toml

# The packages that the build needs: the list that the all-in-one installs.
function pollux_build_packages {
    PYTHONPATH=$POLLUX_DIR/devstack/allinone.d /usr/bin/python3 -B -c \
        'from allinone import debian; print(*debian.BUILD)'
}

function install_polluxd {
    cmake --preset release -S "$POLLUX_DIR" -B "$POLLUX_DIR/build/release"
    cmake --build "$POLLUX_DIR/build/release" --target polluxd
    # Into the environment that Cinder and Nova run in; os_brick and os_vif find it by entry points.
    pip_install "$POLLUX_DIR/driver-python"
}

function configure_polluxd {
    sudo install -d -o "$STACK_USER" -m 755 "$POLLUX_CONF_DIR" "$POLLUX_STATE_DIR"
    if [[ ! -e $POLLUX_CERTS_DIR/ca.pem ]]; then
        polluxctl certs init "$POLLUX_CERTS_DIR" --host "$(hostname)"
    fi
    cat > "$POLLUXD_CONF" <<EOF
[service]
host_id = "$(hostname)"
state_dir = "$POLLUX_STATE_DIR"
runtime_dir = "$POLLUX_RUNTIME_DIR"

[control]
listen = "$POLLUX_LISTEN"
ca = "$POLLUX_CERTS_DIR/ca.pem"
certificate = "$POLLUX_CERTS_DIR/server.pem"
key = "$POLLUX_CERTS_DIR/server-key.pem"
EOF
}

# iniset_pollux_client FILE SECTION ROLE: the options by which a service reaches polluxd.
function iniset_pollux_client {
    local file=$1 section=$2 role=$3
    iniset "$file" "$section" pollux_address "$POLLUX_LISTEN"
    iniset "$file" "$section" pollux_ca "$POLLUX_CERTS_DIR/ca.pem"
    iniset "$file" "$section" pollux_certificate "$POLLUX_CERTS_DIR/$role.pem"
    iniset "$file" "$section" pollux_key "$POLLUX_CERTS_DIR/$role-key.pem"
}

# Called by lib/cinder for every back end `pollux:NAME` of CINDER_ENABLED_BACKENDS.
function configure_cinder_backend_pollux {
    local name=$1
    iniset "$CINDER_CONF" "$name" volume_backend_name "$name"
    iniset "$CINDER_CONF" "$name" volume_driver pollux.cinder.driver.PolluxDriver
    iniset_pollux_client "$CINDER_CONF" "$name" cinder
}

# nova-cpu.conf is copied from nova.conf when nova-compute starts, so that is where options belong.
function configure_nova_pollux {
    iniset_pollux_client "$NOVA_CONF" pollux compute
    # Cinder lets Nova detach a volume only when a service's token comes with the user's.
    iniset "$NOVA_CONF" service_user send_service_user_token True
}

function pollux_admin {
    polluxctl --address "$POLLUX_LISTEN" --ca "$POLLUX_CERTS_DIR/ca.pem" \
        --certificate "$POLLUX_CERTS_DIR/admin.pem" --key "$POLLUX_CERTS_DIR/admin-key.pem" "$@"
}

function start_polluxd {
    sudo install -d -o "$STACK_USER" -m 755 "$POLLUX_RUNTIME_DIR"
    run_process polluxd "$POLLUXD_BIN --config $POLLUXD_CONF" root root
    wait_for_service 60 "${POLLUX_LISTEN%:*}" "${POLLUX_LISTEN##*:}"
    if ! pollux_admin pool show "$POLLUX_POOL" > /dev/null 2>&1; then
        pollux_admin pool create "$POLLUX_POOL" --file "$POLLUX_POOL_FILE" --size "$POLLUX_POOL_SIZE_BYTES"
    fi
}

function stop_polluxd {
    stop_process polluxd
}

# Called by lib/cinder's cleanup, and by the clean phase: everything that the plugin made outside its checkout.
function cleanup_cinder_backend_pollux {
    sudo rm -rf "$POLLUX_STATE_DIR" "$POLLUX_RUNTIME_DIR" "$POLLUX_CONF_DIR"
}

# The type that lib/cinder made for the back end says how guests reach its volumes.
function set_pollux_volume_type {
    local backend
    for backend in ${CINDER_ENABLED_BACKENDS//,/ }; do
        if [[ ${backend%%:*} == pollux ]]; then
            openstack --os-cloud devstack-admin volume type set --property "pollux:transport=$POLLUX_TRANSPORT" \
                "${backend##*:}"
        fi
    done
}

function configure_tempest_pollux {
    iniset "$TEMPEST_CONFIG" volume storage_protocol vhost-user
    iniset "$TEMPEST_CONFIG" volume vendor_name Pollux
    iniset "$TEMPEST_CONFIG" compute-feature-enabled attach_encrypted_volume False
}

if is_service_enabled polluxd; then
    case "$1 ${2:-}" in
        "stack pre-install")
            echo_summary "Installing what polluxd is built with"
            # shellcheck disable=SC2046
            install_package $(pollux_build_packages)
            ;;
        "stack install")
            echo_summary "Building polluxd"
            install_polluxd
            ;;
        "stack post-config")
            # Before the services that need it are started.
            echo_summary "Configuring and starting polluxd"
            configure_polluxd
            configure_nova_pollux
            start_polluxd
            ;;
        "stack extra")
            set_pollux_volume_type
            ;;
        "stack test-config")
            configure_tempest_pollux
            ;;
        "unstack ")
            stop_polluxd
            ;;
        "clean ")
            cleanup_cinder_backend_pollux
            ;;
    esac
fi

# Restore xtrace
$_XTRACE_POLLUX
