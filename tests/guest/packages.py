"""Debian packages fetched and unpacked into the test cache, never installed.

Guests need kernels, and installing one would touch /boot of the machine. ``apt-get download`` and
``dpkg-deb -x`` put them into ``~/.cache/pollux-tests`` (or ``$POLLUX_TEST_CACHE``) instead. What is in
the cache is used as it is; remove the folder to fetch newer versions.
"""

from __future__ import annotations

import fcntl
import fnmatch
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class PackageError(Exception):
    """A Debian package could not be found, fetched or unpacked."""


def cache_dir() -> Path:
    """The test cache; created when missing."""
    configured = os.environ.get("POLLUX_TEST_CACHE")
    path = Path(configured) if configured else Path.home() / ".cache" / "pollux-tests"
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def cache_lock(name: str) -> Iterator[None]:
    """Hold the cache's lock `name`, so that two test runs do not build one thing at the same time."""
    with open(cache_dir() / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def unpacked(package: str) -> Path:
    """The folder that holds the files of `package`, fetched at the first call."""
    target = cache_dir() / "packages" / package
    with cache_lock("packages"):
        if not target.is_dir():
            _fetch(package, target)
    return target


def dependency(metapackage: str, pattern: str) -> str:
    """The package that `metapackage` depends on and whose name matches the shell `pattern`.

    A matching package that is in the cache already wins, so that a cached kernel is used without
    asking the package index.
    """
    cached = sorted((cache_dir() / "packages").glob(pattern))
    if cached:
        return cached[-1].name
    matching = fnmatch.filter(_run("apt-cache", "depends", metapackage).split(), pattern)
    if not matching:
        raise PackageError(f"{metapackage} depends on no {pattern}; has 'apt-get update' been run?")
    return matching[0]


def _fetch(package: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".fetch-", dir=target.parent))
    try:
        # apt cannot drop privileges into a folder that only root may enter, and warns about it.
        _run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package, cwd=scratch)
        (deb,) = scratch.glob("*.deb")
        _run("dpkg-deb", "-x", str(deb), str(scratch / "root"))
        (scratch / "root").rename(target)
    finally:
        shutil.rmtree(scratch)


def _run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PackageError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
