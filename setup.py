"""The optional C module; everything else about the package is in pyproject.toml."""

import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel

HOST = Extension(
    "fused_optim._host",
    ["csrc/module.c", "csrc/snapshot.c"],
    depends=["csrc/snapshot.h"],
    optional=True,
    py_limited_api=True,
)
# the stable ABI, one file for every Python from 3.10 on, is that of CPython with its lock
HAS_STABLE_ABI = sys.implementation.name == "cpython" and not sysconfig.get_config_var(
    "Py_GIL_DISABLED"
)


class Wheel(bdist_wheel):
    """A wheel of the stable ABI, or one for every platform if the C module could not be built."""

    def run(self) -> None:
        """Build the C module first, which decides the name of the wheel."""
        self.run_command("build_ext")
        build = self.get_finalized_command("build_ext")
        if not any(Path(path).exists() for path in build.get_outputs()):
            self.distribution.ext_modules = []
            self.root_is_pure = True
        super().run()


setup(
    ext_modules=[HOST] if HAS_STABLE_ABI else [],
    cmdclass={"bdist_wheel": Wheel},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if HAS_STABLE_ABI else {},
)
