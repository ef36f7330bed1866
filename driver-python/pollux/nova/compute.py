"""pollux-nova-compute: nova-compute that does not start without Pollux.

The plain nova-compute loads Pollux as well (pollux.nova.hook), and goes on without it when Nova is not as expected.
This program says so and ends instead.
"""

from __future__ import annotations

import sys


def main() -> int | None:
    # First of all: importing it decides how Nova runs its threads.
    from nova.cmd import compute
    from nova.virt.libvirt import driver

    from pollux import errors
    from pollux.nova import wraps

    try:
        wraps.check(driver.LibvirtDriver)
    except errors.PolluxError as error:
        return f'pollux-nova-compute: this Nova is not one that Pollux knows: {error}'  # type: ignore[return-value]
    return compute.main()


if __name__ == '__main__':
    sys.exit(main())
