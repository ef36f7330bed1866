"""Generates pollux.rpc from the Thrift contract wherever the package is built: install, wheel, editable, sdist.

The contract is ../thrift/pollux.thrift in a checkout and pollux.thrift beside this file in a source distribution.
"""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import tempfile

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = pathlib.Path(__file__).resolve().parent
#: Read by every Python process of the environment, see pollux.brick.autoload. An editable install does not have it.
AUTOLOAD = 'pollux-os-brick.pth'
NAME = 'pollux.thrift'


def contract() -> pathlib.Path:
    places = [HERE / NAME, HERE.parent / 'thrift' / NAME]
    for place in places:
        if place.exists():
            return place
    raise SystemExit(f'{NAME} is neither at {places[0]} nor at {places[1]}: build from a checkout or from an sdist')


def generate(target: pathlib.Path) -> list[pathlib.Path]:
    """Write the generated package into the folder `target`; the files it wrote."""
    compiler = shutil.which('thrift')
    if compiler is None:
        raise SystemExit('The Thrift compiler `thrift` is missing: install the package thrift-compiler')
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([compiler, '--gen', 'py', '-out', scratch, str(contract())], check=True)
        return [pathlib.Path(shutil.copy(path, target))
                for path in sorted((pathlib.Path(scratch) / 'pollux' / 'rpc').glob('*.py'))]


class BuildWithContract(build_py):
    def run(self) -> None:
        # An editable install runs from the source folder.
        self.generated = generate(HERE / 'pollux' / 'rpc' if self.editable_mode
                                  else pathlib.Path(self.build_lib) / 'pollux' / 'rpc')
        super().run()
        if not self.editable_mode:
            self.copy_file(str(HERE / AUTOLOAD), str(pathlib.Path(self.build_lib) / AUTOLOAD))

    def check_package(self, package: str, package_dir: str) -> str | None:
        # pollux.rpc has no folder among the sources before it is generated.
        return None if package == 'pollux.rpc' else super().check_package(package, package_dir)

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        if package == 'pollux.rpc' and not self.editable_mode:
            return []
        return super().find_package_modules(package, package_dir)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        made = [] if self.editable_mode else [
            *(str(path) for path in getattr(self, 'generated', [])), str(pathlib.Path(self.build_lib) / AUTOLOAD)]
        return list(super().get_outputs(include_bytecode)) + made


class SdistWithContract(sdist):
    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, [name for name in files if not name.startswith('pollux/rpc/')])
        shutil.copy(contract(), pathlib.Path(base_dir) / NAME)
        shutil.copy(HERE / AUTOLOAD, pathlib.Path(base_dir) / AUTOLOAD)


setup(cmdclass={'build_py': BuildWithContract, 'sdist': SdistWithContract})
