"""Building minifm: everything declarative is in pyproject.toml; here is the C extension.

The extension is optional. Where there is no C compiler at all, the install succeeds, NumPy
serves, and one notice says so. Any other failure of the build is an error and stays visible: a
broken kernel must not turn silently into a slow install.
"""

import os
import shlex
import shutil
import sys
import sysconfig

from setuptools import setup

NOTICE = (
    "minifm: no C compiler found ({compiler!r} is not on the PATH), so the C backend was not "
    "built. minifm runs on its NumPy backend; to get the C backend, install gcc or clang and "
    "install minifm again."
)


def missing_compiler():
    """The command that would compile the extension, if it is not there; else None."""
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    return None if shutil.which(command[0]) else command[0]


compiler = missing_compiler()
if compiler:
    print(NOTICE.format(compiler=compiler), file=sys.stderr)
    setup()
else:
    setup(cffi_modules=["csrc/build.py:ffibuilder"])
