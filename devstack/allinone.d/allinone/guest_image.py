"""The image that the demo boots, and whether this machine's KVM can boot it."""

from __future__ import annotations

import pathlib
import subprocess

from . import files, venv
from .process import boot_id
from .settings import Settings

BOOTED = b'@@POLLUX-BOOTED'
PROBE_S = 25.0


def path(settings: Settings) -> pathlib.Path:
    return settings.data / 'guest' / 'boot.raw'


def build(settings: Settings) -> pathlib.Path:
    """A small Debian kernel with busybox; made anew when the recipe changes."""
    recipe = settings.repo / 'tests' / 'guest'
    sources = [recipe / 'mkbootimage', recipe / 'bootimage.py', recipe / 'initramfs.py', recipe / 'kernels.py']
    sources += sorted((recipe / 'files').iterdir())
    wanted = venv.digest(sources)
    image = path(settings)
    marker = image.with_suffix('.recipe')
    if image.exists() and marker.exists() and marker.read_text() == wanted:
        return image
    folder = settings.folder('data', 'guest')
    venv.run(['env', f'POLLUX_TEST_CACHE={folder / "cache"}', str(recipe / 'mkbootimage'), str(image)],
             settings.folder('logs') / 'guest-image.log')
    files.write(marker, wanted)
    return image


def boots_under_kvm(image: pathlib.Path) -> bool:
    """Whether the guest reaches its first process under KVM. A KVM that exists is not always one that works: under
    some nested hypervisors Debian's kernels stop early."""
    if not pathlib.Path('/dev/kvm').exists():
        return False
    command = ['timeout', '--kill-after=2', f'{PROBE_S:.0f}', 'qemu-system-x86_64', '-accel', 'kvm', '-cpu', 'host',
               '-machine', 'q35', '-m', '256', '-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot',
               '-snapshot', '-drive', f'file={image},format=raw,if=virtio', '-serial', 'stdio']
    seen = b''
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL) as guest:
        assert guest.stdout is not None
        for line in guest.stdout:
            seen += line
            if BOOTED in line:
                break
        guest.terminate()
    return BOOTED in seen


def virt_type(settings: Settings) -> str:
    """'kvm' or 'qemu', for Nova. Probed once a boot of the machine, since it is the host that decides."""
    known = settings.data / 'guest' / 'virt-type'
    stamp = boot_id()
    if known.exists():
        before, _, answer = known.read_text().partition(' ')
        if before == stamp:
            return answer
    answer = 'kvm' if boots_under_kvm(path(settings)) else 'qemu'
    files.write(known, f'{stamp} {answer}')
    return answer
