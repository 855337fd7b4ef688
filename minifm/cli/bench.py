"""`minifm bench`: what each op takes on each backend, and how near that is to the limit."""

import difflib
import json
import math
import time
from pathlib import Path

from minifm.cli.generate import show
from minifm.errors import ConfigError

EXAMPLE = """\
example:
  minifm bench --quick
  minifm bench --op linear --op layernorm --seconds 3 --json bench.json
  minifm bench --op matmul --size M=4096 --size N=3072 --backend c
  MINIFM_ISA=portable MINIFM_THREADS=1 minifm bench --op attention

reading a row:
  of limit   FMA: of the multiply-adds that registers allow; copy: of the bandwidth of a copy,
             by the bytes that the op must read and write. Both are measured in this run
  view       the result is another view of the operand: nothing is computed
  cached     these arrays are too small to leave the cache: not comparable with the copy
  NumPy: …   verbs for which this backend has no kernel and calls NumPy
  copies: …  verbs for which it first copied an operand whose strides no kernel reads
"""

QUICK_SECONDS = 0.1
QUICK_SIZES = {"*B": (2, 256), "*X": (1024, 768), "B": 2, "M": 256, "V": 2048, "images": 2}
RISEN = 1.03        # a limit that rises by more during the run deserves a word
DISTURBED = 0.02    # and so does a run that waited for a larger share of its time


def arguments(parser):
    parser.add_argument("--op", action="append", metavar="NAME",
                        help="this op; may be repeated (default: every op)")
    parser.add_argument("--backend", action="append", metavar="NAME",
                        help="this backend; may be repeated (default: every one there is)")
    parser.add_argument("--seconds", type=float, metavar="S",
                        help="how long to time each op, all backends together (default: 1)")
    parser.add_argument("--size", action="append", default=[], metavar="DIMENSION=N",
                        help="another size, by the dimension's name: T=1024, V=50257, '*B=8x512'")
    parser.add_argument("--quick", action="store_true",
                        help=f"small arrays and {QUICK_SECONDS} seconds an op: a first impression")
    parser.add_argument("--json", metavar="FILE", help="write machine, limits and rows there")


def run(args):
    from minifm.atomic import atomic_file
    from minifm.testing.benchmark import Bench
    from minifm.testing.machine import waited
    ops, backends = chosen_ops(args.op), chosen_backends(args.backend)
    sizes = (QUICK_SIZES if args.quick else {}) | dict(map(chosen_size, args.size))
    seconds = chosen_seconds(args)
    if args.json and Path(args.json).is_dir():
        raise ConfigError(f"--json: {args.json} is a directory, not a file")
    bench = Bench(backends, seconds, sizes)
    first, rows, before, start = limits(bench), [], waited(), time.perf_counter()
    show("\n".join(heading(bench)) + "\n")
    for op in ops:
        found = bench.rows(op)
        rows += found
        show("\n".join(["", *table(found)]) + "\n")
    share = (waited() - before) / (time.perf_counter() - start)
    for line in remarks(first, limits(bench), rows, share):
        show(f"\n{line}\n")
    if args.json:
        with atomic_file(args.json) as file:
            file.write(json.dumps(bench.report(rows), indent=1).encode())


# -- what the user asked for -----------------------------------------------------------------------


def chosen_ops(names):
    """The class names of the ops; `layernorm`, `layer_norm` and `LayerNorm` name the same one."""
    from minifm import ops  # noqa: F401  (fills the table)
    from minifm.op import OPS
    known = {_plain(name): name for name in OPS}
    return [known[_near("--op", _plain(name), known, name)] for name in names or OPS]


def _plain(name):
    return name.lower().replace("_", "")


def chosen_backends(names):
    """The names of the backends, each once; one that is not available raises, with the reason."""
    from minifm import backends
    if not names:
        return [name for name in backends.NAMES if backends.why_not(name) is None]
    for name in names:
        backends.get(_near("--backend", name, backends.NAMES, name))
    return list(dict.fromkeys(names))


def chosen_size(text):
    """("T", 1024) of "T=1024", ("*B", (8, 512)) of "*B=8x512"."""
    from minifm.testing.draw import Benchmark
    name, equals, value = text.partition("=")
    usual = Benchmark.SIZES[_near("--size", name, Benchmark.SIZES, name)]
    parts = value.split("x") if value else []
    several = isinstance(usual, tuple)
    if not equals or not all(p.isdecimal() and int(p) > 0 for p in parts) or (
            not several and len(parts) != 1):
        like = "x".join(map(str, usual)) if several else usual
        raise ConfigError(f"--size: expected {name}={like} or the like, got {text!r}")
    return name, tuple(map(int, parts)) if several else int(parts[0])


def chosen_seconds(args):
    if args.seconds is None:
        return QUICK_SECONDS if args.quick else 1.0
    if not 0 < args.seconds < math.inf:
        raise ConfigError(f"--seconds: expected a number above 0, got {args.seconds}")
    return args.seconds


def _near(flag, wanted, known, given):
    """`wanted`, if it is among `known`; else a ConfigError that names what is nearest."""
    if wanted in known:
        return wanted
    near = difflib.get_close_matches(wanted, list(known), 3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
    raise ConfigError(f"{flag}: {given!r} is unknown; {hint}")


# -- what is printed -------------------------------------------------------------------------------


def heading(bench):
    """The machine, the backends, the limits, and the names of the columns."""
    from minifm.testing.machine import describe_machine
    machine = describe_machine(bench.backends.values())
    settings = "".join(f", {name}={value}" for name, value in machine["settings"].items())
    lines = [f"machine    {machine['processor']}, {machine['cores']} cores, last-level cache "
             f"{bench.cache >> 20} MB{settings}"]
    lines += [f"{'backends' if i == 0 else '':<11}{name:<7}{text}"
              for i, (name, text) in enumerate(machine["backends"].items())]
    lines += [f"{'limits' if i == 0 else '':<11}{name:<7}{rate:<15}{how}"
              for i, (name, rate, how) in enumerate(_limit_lines(bench))]
    lines += [f"arrays     in copies that fill {bench.footprint >> 20} MB, used in turn: no call "
              "finds its own in a cache", ""]
    lines.append(_columns("", "", "threads", "median", "(fastest … slowest)", "rate", "of limit",
                          "× numpy"))
    return lines


def _limit_lines(bench):
    by_how = {ceiling.how: ceiling for ceiling in bench.fma.values()}
    for ceiling in by_how.values():
        yield "FMA", rate_text(ceiling.rate, "FLOP/s"), ceiling.how
    yield "read", rate_text(bench.read.rate, "B/s"), bench.read.how
    yield "copy", rate_text(bench.copy.rate, "B/s"), f"{bench.copy.how}, bytes read and written"


def table(rows):
    """The lines of one op."""
    name, _, rest = f"{rows[0].op}  {rows[0].inputs}".partition("  ")
    lines, phase = [f"{name}  {rest}"], None
    for row in rows:
        lines.append(line(row, row.phase if row.phase != phase else ""))
        phase = row.phase
    return lines


def line(row, phase):
    """One row of the table."""
    who = f"{row.backend} {row.isa}" if row.isa else row.backend
    rate = fraction = "view"
    if row.limit:
        rate = rate_text(row.rate, "FLOP/s" if row.limit == "FMA" else "B/s")
        fraction = f"{row.fraction:.0%} {row.limit}"
    notes = ["cached"] if row.cached and row.limit == "copy" else []
    notes += [f"NumPy: {', '.join(row.on_numpy)}"] if row.on_numpy else []
    notes += [f"copies: {', '.join(row.copied)}"] if row.copied else []
    spread = f"({scaled(row.fastest, row.median)} … {scaled(row.slowest, row.median)})"
    return _columns(phase, who, "?" if row.threads is None else row.threads,
                    time_text(row.median), spread, rate, fraction if row.limit else "",
                    "" if row.ratio is None else f"{row.ratio:.2f}", "; ".join(notes))


def _columns(phase, who, threads, median, spread, rate, fraction, ratio, notes=""):
    return (f"  {phase:<9} {who:<9} {threads:>7} {median:>9} {spread:>20} {rate:>12} "
            f"{fraction:>10} {ratio:>8}  {notes}").rstrip()


def remarks(first, last, rows, share):
    """What a reader must know before believing the table. `share` of the time, a thread of ours
    waited for a core that another program had."""
    if share > DISTURBED:
        yield (f"For {share:.0%} of the time a thread waited for a core that another program had: "
               "these figures are too slow, and those of several threads most of all.")
    risen = [name for name in first if last[name] > RISEN * first[name]]
    if risen:
        yield (f"The limits ({', '.join(risen)}) rose during the run: the machine was busy when "
               "they were first measured, and the first rows look better than they are. (The rows "
               "of --json are held against the limits as last known.)")
    beyond = sum(row.fraction is not None and row.fraction > RISEN and not row.cached
                 for row in rows)
    if beyond:
        yield (f"{beyond} rows are above their limit, which cannot be: the machine was busy while "
               "it was measured. Run again on a quiet machine.")


def limits(bench):
    """{name: rate} of the ceilings as they are now."""
    rates = {f"FMA of {name}": ceiling.rate for name, ceiling in bench.fma.items()}
    return rates | {"read": bench.read.rate, "copy": bench.copy.rate}


def time_text(seconds):
    """"21.4 ms", three digits."""
    return f"{scaled(seconds, seconds)} {_unit(seconds)[1]}"


def scaled(seconds, like):
    """Three digits of `seconds`, in the unit in which `like` is shown."""
    return _three_digits(seconds / _unit(like)[0])


def rate_text(rate, unit):
    """"113 GFLOP/s", three digits."""
    return f"{_three_digits(rate / 1e9)} G{unit}"


def _unit(seconds):
    return next(((size, name) for size, name in ((1, "s"), (1e-3, "ms")) if seconds >= size),
                (1e-6, "µs"))


def _three_digits(x):
    return f"{x:.{max(0, 2 - math.floor(math.log10(x)) if x >= 1 else 2)}f}"
