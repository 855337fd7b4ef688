"""Compiles csrc/*.c into the module minifm.backends._csrc, through CFFI in API mode.

minifm.h is the only list of prototypes: the C compiler includes it, and CFFI parses the same
text. No flag names an instruction set: functions ask for theirs one by one (isa.h), so one
binary runs on every machine of its architecture and picks at run time.
"""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
# Contraction of a*b + c into one rounding is left to explicit fma calls, and infinities and NaN
# keep their meaning: results must not depend on what a compiler fancies.
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden",
         "-Wall", "-Wextra", "-Wno-unused-parameter", "-pthread"]


def prototypes():
    """The text of minifm.h without its preprocessor lines, which CFFI does not read."""
    lines = (HERE / "minifm.h").read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


ffibuilder = FFI()
ffibuilder.cdef(prototypes())
ffibuilder.set_source(
    "minifm.backends._csrc",
    '#include "minifm.h"',
    sources=sorted(f"csrc/{path.name}" for path in HERE.glob("*.c")),
    depends=sorted(f"csrc/{path.name}" for path in HERE.glob("*.h")),
    include_dirs=["csrc"],
    extra_compile_args=FLAGS,
    extra_link_args=["-pthread"],
    libraries=["m"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
