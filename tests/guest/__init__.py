"""Real guests for tests: kernels, images, and launchers for User-mode Linux, QEMU and libvirt.

A guest talks to a test through its console alone: scripts print lines that begin with ``@@`` and the
test waits for them with a deadline (`guest.console`). Nothing here knows Pollux: a guest is handed
vhost-user sockets, of any server.
"""
