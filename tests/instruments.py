"""The kernel tests on extensions that are built with instruments, or for another processor.

    python tests/instruments.py address      AddressSanitizer and UndefinedBehaviorSanitizer
    python tests/instruments.py threads      ThreadSanitizer: races between a region's threads
    python tests/instruments.py coverage     which lines of csrc/ the tests reach, by gcov
    python tests/instruments.py avx512       the AVX-512 kernels through SIMDe, on any x86-64
    python tests/instruments.py avx512bf16   and those with dot products of bf16
    python tests/instruments.py neon         the NEON kernels through SIMDe, on any x86-64
    python tests/instruments.py arm64        the NEON kernels by themselves, as arm64 runs them

More arguments go to pytest (-k, -x, files). Each builds a copy of the package into build/NAME,
never over the installed one, and takes minutes. They need gcc on Linux; avx512, avx512bf16 and
neon the headers of SIMDe (Debian: libsimde-dev); arm64 a cross compiler and an emulator
(gcc-aarch64-linux-gnu, qemu-user), or the processor. What is missing is said, and skipped. A
report of a sanitizer, in a test or in a process that a test starts, fails the run and is printed.
"""

import gzip
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = [f"tests/test_{name}.py" for name in (
    "native", "native_limits", "native_laws", "backends", "conv", "packed", "precision",
    "decoding")]
POOL = "tests/test_pool.py"
EMULATED = ("avx512", "avx512bf16", "neon")
CC = os.environ.get("CC", "gcc")


@dataclass(frozen=True)
class Instrument:
    """Flags of the compiler for all files and for some, libraries that must be loaded before any
    other, settings, and test files beyond TESTS."""

    flags: list[str] = field(default_factory=list)
    own: dict[str, list[str]] = field(default_factory=dict)
    preloaded: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    more: list[str] = field(default_factory=list)


INSTRUMENTS = {
    # The pool of arrays rests, so that the bounds of arrays are malloc's, and are watched.
    # Not float-divide-by-zero: 1 / 0 is infinity here, as IEEE 754 says. Python keeps memory to
    # its end, so leaks are not looked for; its small blocks come from malloc to be watched too.
    "address": Instrument(
        ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all",
         "-fsanitize=address,undefined,float-cast-overflow"],
        {}, ["libasan.so", "libstdc++.so.6"],
        {"ASAN_OPTIONS": "detect_leaks=0"
         ":detect_stack_use_after_return=1:allocator_may_return_null=1",
         "UBSAN_OPTIONS": "print_stacktrace=1", "PYTHONMALLOC": "malloc"}),
    # Only csrc/ is instrumented: how Python and BLAS synchronise, the sanitizer cannot see.
    "threads": Instrument(
        ["-O1", "-g", "-fsanitize=thread"], {}, ["libtsan.so"],
        {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1:die_after_fork=0:halt_on_error=1"
         ":allocator_may_return_null=1"}, [POOL]),
    "coverage": Instrument(["-O1", "--coverage", "-fprofile-update=atomic"], more=[POOL]),
    "avx512": Instrument(
        environment={"MINIFM_ISA": "avx512"},
        own={"isa_avx512": ["-O2", "-mavx2", "-mfma", "-Itests/emulated/avx512"]}),
    "avx512bf16": Instrument(
        environment={"MINIFM_ISA": "avx512bf16"},
        own={"isa_avx512bf16": ["-O2", "-mavx2", "-mfma", "-Itests/emulated/avx512"]}),
    "neon": Instrument(
        environment={"MINIFM_ISA": "neon"},
        own=dict.fromkeys(["isa_neon", "isa"], [
            "-O2", "-mavx2", "-mfma", "-Itests/emulated/neon", "-include", "arm_neon.h"])),
}


def compiler_flags():
    return [*builder().FLAGS, "-Icsrc"]


def builder():
    """The module csrc/build.py."""
    sys.path.insert(0, str(ROOT / "csrc"))
    return importlib.import_module("build")


def build(name):
    """The package in build/NAME, its extension compiled as the instrument says; returns where."""
    place = ROOT / "build" / name
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(ROOT / "minifm", place / "minifm",
                    ignore=shutil.ignore_patterns("*.so", "_csrc*", "__pycache__"))
    objects = place / "objects"
    objects.mkdir()
    builder().ffibuilder.emit_c_code(str(objects / "_csrc.c"))
    sources = [*sorted((ROOT / "csrc").glob("*.c")), objects / "_csrc.c"]
    flags = [*compiler_flags(), "-fPIC", f"-I{sysconfig.get_paths()['include']}",
             *INSTRUMENTS[name].flags]

    def compiled(source):
        made = str(objects / f"{source.stem}.o")
        own = INSTRUMENTS[name].own.get(source.stem, [])
        subprocess.run([CC, *flags, *own, "-c", str(source), "-o", made], cwd=ROOT, check=True)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = list(pool.map(compiled, sources))
    extension = f"minifm/backends/_csrc{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([CC, *flags, "-shared", *made, "-lm", "-o", str(place / extension)],
                   cwd=ROOT, check=True)
    return place


def library(name):
    """Where the compiler keeps one of its own libraries."""
    found = subprocess.run([CC, f"-print-file-name={name}"], capture_output=True, text=True)
    path = found.stdout.strip()
    if not os.path.isabs(path):
        sys.exit(f"{CC} has no {name}: install the sanitizers of your compiler")
    return path


def environment(name, place):
    """What an interpreter needs to run on the package in `place`, and on no other."""
    instrument = INSTRUMENTS[name]
    settings = os.environ | instrument.environment
    settings |= {"PYTHONPATH": str(place), "PYTHONSAFEPATH": "1"}
    for options in {"ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS"} & set(instrument.environment):
        settings[options] += f":log_path={place / 'report'}"
    if instrument.preloaded:
        settings["LD_PRELOAD"] = " ".join(library(each) for each in instrument.preloaded)
    return settings


def reports(place):
    """Print what the sanitizers wrote, of the tests' own child processes too; how many did."""
    found = sorted(place.glob("report.*"))
    for path in found:
        print(path.read_text("utf-8", "replace"))
    return len(found)


def lines_reached(place):
    """Print, for each file of csrc/, how many of its lines ran and which did not; by gcov."""
    counts = {}
    objects = place / "objects"
    subprocess.run(["gcov", "--json-format", *map(str, objects.glob("*.gcda"))], cwd=objects,
                   check=True, capture_output=True)
    for report in objects.glob("*.gcov.json.gz"):
        for file in json.loads(gzip.decompress(report.read_bytes()))["files"]:
            path = Path(file["file"])
            if "csrc" in path.parts and path.stem != "_csrc":
                lines = counts.setdefault(path.name, {})
                for line in file["lines"]:
                    number = line["line_number"]
                    lines[number] = max(lines.get(number, 0), line["count"])
    for file, lines in sorted(counts.items()):
        missed = sorted(number for number, count in lines.items() if not count)
        print(f"{file:20} {len(lines) - len(missed):5} of {len(lines):5} lines"
              + (f"; not {', '.join(map(str, missed))}" if missed else ""))
    reached = sum(count > 0 for lines in counts.values() for count in lines.values())
    total = sum(map(len, counts.values()))
    print(f"{'csrc/':20} {reached:5} of {total:5} lines, {reached / total:.1%}")


def why_not(name):
    """What this machine lacks for `name`, or None."""
    x86, arm = (platform.machine() in names for names in (("x86_64",), ("aarch64", "arm64")))
    tools = {"arm64": ["gcc"] if arm else ["aarch64-linux-gnu-gcc", "qemu-aarch64"]}
    for tool in tools.get(name, [CC]):
        if not shutil.which(tool):
            return f"{tool} is not there"
    if name in EMULATED and not x86:
        return "the emulated kernels are compiled for x86-64"
    if name in EMULATED and subprocess.run(
            [CC, "-E", "-include", "simde/arm/neon.h", "-xc", "/dev/null"],
            capture_output=True).returncode:
        return "the headers of SIMDe are not there"
    return None


def compare_on_arm64():
    """Compile tests/emulated/compare.c for arm64 and run it there; its exit status."""
    at_home = platform.machine() in ("aarch64", "arm64")
    return compare("gcc" if at_home else "aarch64-linux-gnu-gcc", "neon", ["-static"],
                   [] if at_home else ["qemu-aarch64"])


def compare_emulated(name):
    """The same through SIMDe, and under the sanitizers, which see what a test cannot. Integers of
    vectors wrap around, and SIMDe says so with C's signed ones. -g1: for all of -g on such
    intrinsics the compiler takes many minutes."""
    return compare(CC, name, [
        *INSTRUMENTS[name].own[f"isa_{name}"], "-O1", "-g1", "-fno-sanitize-recover=all",
        "-fsanitize=address,undefined", "-fno-sanitize=signed-integer-overflow"], [])


def compare(compiler, isa, flags, runner):
    program = ROOT / "build" / f"compare-{compiler}-{isa}"
    program.parent.mkdir(exist_ok=True)
    sources = ["tests/emulated/compare.c", "csrc/isa_portable.c", f"csrc/isa_{isa}.c"]
    subprocess.run([compiler, *compiler_flags(), f"-DTABLE=kernels_{isa}", *flags, *sources, "-lm",
                    "-o", str(program)], cwd=ROOT, check=True)
    return subprocess.run([*runner, str(program)]).returncode


def main(name, *arguments):
    if name not in (*INSTRUMENTS, "arm64"):
        sys.exit(f"instruments: expected one of {', '.join(INSTRUMENTS)}, arm64; got {name!r}")
    if reason := why_not(name):
        print(f"instruments: {name} skipped: {reason}")
        return
    if name == "arm64":
        sys.exit(compare_on_arm64())
    if name in EMULATED and compare_emulated(name):
        sys.exit(1)
    place = build(name)
    settings = environment(name, place)
    named = any(Path(argument.split("::")[0]).exists() for argument in arguments)
    tests = [] if named else [*TESTS, *INSTRUMENTS[name].more]
    # gcc's UBSan writes to the standard error and nowhere else, so that must not be captured.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--capture=sys",
               *tests, *arguments]
    status = subprocess.run(command, cwd=ROOT, env=settings).returncode
    if name == "coverage":
        lines_reached(place)
    sys.exit(1 if reports(place) else status)


if __name__ == "__main__":
    main(*(sys.argv[1:] or [""]))
