"""`minifm env`: what runs here, on what, and the reason for each thing that does not."""

import importlib.metadata
import json
import os
import platform
import sys

from minifm.backends.threads import usable_cores
from minifm.errors import BackendUnavailable, ConfigError

EXAMPLE = """\
example:
  minifm env
  MINIFM_ISA=avx2 minifm env --json
"""

# extra -> the packages it brings; "core" comes with minifm itself.
PACKAGES = {
    "core": ("numpy", "numba", "cffi", "safetensors", "tokenizers", "huggingface_hub", "tqdm",
             "threadpoolctl"),
    "viz": ("matplotlib", "pillow"),
    "data": ("scikit-learn",),
    "test": ("pytest", "hypothesis", "pytest-benchmark"),
    "cuda": ("numba-cuda",),
    "dev": ("ruff",),
}


def arguments(parser, argv):
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(args):
    found = environment()
    if args.json:
        print(json.dumps(found, indent=2))
        return
    for heading, lines in found.items():
        print(heading)
        for name, value in lines.items():
            print(f"  {name:<18}{value}")


def environment():
    """{heading: {what: how it is}}, all strings."""
    return {"minifm": _general(), "backends": _backends(), "packages": _packages()}


def _general():
    from minifm import __version__
    settings = {k: v for k, v in sorted(os.environ.items()) if k.startswith("MINIFM_")}
    return {
        "version": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "processors": f"{usable_cores()} usable of {os.cpu_count()}",
        "settings": " ".join(f"{k}={v}" for k, v in settings.items()) or "no MINIFM_* variable set",
    }


def _backends():
    from minifm import backends
    try:
        lines = {"active": backends.active().name}
    except (BackendUnavailable, ConfigError) as error:      # a setting asks for what is not here
        lines = {"active": f"none: {error}"}
    for name in backends.NAMES:
        try:
            lines[name] = backends.get(name).describe()
        except (BackendUnavailable, ConfigError) as reason:
            lines[name] = f"no: {reason}"
    return lines


def _packages():
    lines = {}
    for extra, names in PACKAGES.items():
        for name in names:
            try:
                lines[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                whose = "minifm needs it" if extra == "core" else f"the extra {extra} brings it"
                lines[name] = f"no: not installed ({whose})"
    return lines
