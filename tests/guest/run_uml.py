"""Boots User-mode Linux on vhost-user sockets with its console on the standard output."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from guest.console import GuestError
from guest.machine import VhostUserDisk
from guest.uml import Uml


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="run-uml",
        description="Boot User-mode Linux on vhost-user sockets and run a shell script in it as root.",
        epilog="Ends with 0 when the script did. The script finds helpers in /lib/guest.sh.",
    )
    parser.add_argument("script", type=Path, help="file with the shell script")
    parser.add_argument("--blk", type=Path, action="append", default=[], metavar="SOCKET", help="a vhost-user-blk disk")
    parser.add_argument("--scsi", type=Path, action="append", default=[], metavar="SOCKET", help="a scsi controller")
    parser.add_argument("--memory-mb", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=60, help="give up after so long on a quiet machine")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a variable for the script")
    arguments = parser.parse_args()
    disks = [VhostUserDisk(path.resolve(), "blk") for path in arguments.blk]
    disks += [VhostUserDisk(path.resolve(), "scsi") for path in arguments.scsi]
    variables = dict(setting.split("=", 1) for setting in arguments.set)
    guest = Uml(arguments.script.read_text(), disks, memory_mb=arguments.memory_mb, variables=variables)
    try:
        with guest:
            guest.wait_script(arguments.seconds)
            guest.wait_end()
            print(guest.console.text())
    except GuestError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
