"""The Nova side: a libvirt volume driver, and what hooks it into an unmodified nova-compute."""
