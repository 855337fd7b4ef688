"""`minifm bench`: what each kernel and model takes, beside other libraries and the limits."""

import contextlib
import functools
import importlib.util
import itertools
import json
import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from minifm.cli.arguments import meant
from minifm.cli.generate import show
from minifm.errors import ConfigError

EXAMPLE = """\
example:
  minifm bench --quick
  minifm bench --op linear --op layernorm --seconds 3 --json bench.json
  minifm bench --op matmul --size M=4096 --size N=3072 --backend c
  minifm bench --set kernels --only "gemm NN" --torch path/to/python/with/torch
  minifm bench --set all --quick --json bench.json --plot bench.png
  minifm bench --from monday.json --from tuesday.json --plot both.png
  MINIFM_ISA=portable MINIFM_THREADS=1 minifm bench --op attention

reading a row:
  of limit   FMA: of the multiply-adds that registers allow; copy: of the bandwidth of a copy,
             by the bytes that must be read and written; read: of the bandwidth of reading, by
             the weights (and the cache of keys and values). All are measured in this run
  × numpy, × PyTorch, × llama.cpp
             how many times as fast minifm is: above 1, it is faster. Of several modes of a
             library the fastest counts, and is named
  view       the result is another view of the operand: nothing is computed
  cached     these arrays are too small to leave the cache: not comparable with the copy
  NumPy: …   verbs for which this backend has no kernel and calls NumPy
  copies: …  verbs for which it first copied an operand whose strides no kernel reads
"""

SETS = {"ops": "every op as it is declared", "kernels": "the shapes of transformers and images",
        "step": "whole training steps", "sample": "calls of networks that undo noise",
        "decode": "GPT-2's next token, and prefill", "all": "kernels, step, sample and decode"}
MODES = ("eager", "compile", "channels_last", "channels_last+compile", "diffusers", "bf16",
         "bf16+compile", "pure-bf16")
QUICK_SECONDS = 0.1
QUICK_SIZES = {"*B": (2, 256), "*X": (1024, 768), "B": 2, "M": 256, "V": 2048, "images": 2}


def arguments(parser, argv):
    parser.add_argument("--set", choices=SETS, default="ops", help="what to time: " + "; ".join(
        f"{name}: {text}" for name, text in SETS.items()) + " (default: ops)")
    parser.add_argument("--op", action="append", metavar="NAME",
                        help="this op; may be repeated (default: every op)")
    parser.add_argument("--only", action="append", metavar="TEXT",
                        help="of a named set, the cases in whose name this begins a word: gemm, "
                             "'gemm NN 1', 'T 64'; may be repeated")
    parser.add_argument("--backend", action="append", metavar="NAME",
                        help="this backend; may be repeated (default: every one there is)")
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has PyTorch "
                        "(and diffusers), to compare a named set with (default: this one, if it "
                        "has it)")
    parser.add_argument("--llama", metavar="PYTHON", help="an interpreter that has "
                        "llama-cpp-python and gguf, to compare decoding with (default: likewise)")
    parser.add_argument("--mode", action="append", metavar="MODE",
                        help="use PyTorch in this mode alone, where a case has it: "
                             f"{', '.join(MODES)}; may be repeated")
    parser.add_argument("--seconds", type=float, metavar="S",
                        help="how long to time each case, all sides together (default: 1)")
    parser.add_argument("--size", action="append", default=[], metavar="DIMENSION=N",
                        help="another size for ops, by the dimension's name: T=1024, V=50257, "
                             "'*B=8x512'")
    parser.add_argument("--quick", action="store_true",
                        help=f"small arrays or few cases and {QUICK_SECONDS} seconds for each: a "
                             "first impression")
    parser.add_argument("--json", metavar="FILE", help="write machine, limits and rows there")
    parser.add_argument("--plot", metavar="FILE",
                        help="draw a roofline and bars there (PNG or SVG); needs matplotlib")
    parser.add_argument("--from", action="append", metavar="FILE", dest="saved",
                        help="measure nothing: show the rows of this --json; may be repeated")


def run(args):
    from minifm.picture import MISSING, can_draw
    from minifm.testing.figure import draw
    check_files(args)
    if args.plot and not can_draw():
        raise ConfigError(f"--plot: {MISSING}")
    report = merged(args) if args.saved else measured(args)
    save(report, args.json)
    if args.plot:
        draw(report, args.plot)


def measured(args):
    """Time what was asked for, showing it as it comes; returns the report."""
    from minifm.testing.benchmark import Bench
    from minifm.testing.machine import waited
    from minifm.testing.table import heading, limits, lines_of, remarks
    names, cases = chosen_backends(args.backend), chosen_cases(args)
    seconds = chosen_seconds(args)
    sizes = (QUICK_SIZES if args.quick else {}) | dict(map(chosen_size, args.size))
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(peer) for peer in chosen_peers(args)]
        bench, named = Bench(names, seconds, sizes, peers=peers), [p.library.name for p in peers]
        first, rows, before, start = limits(bench), [], waited(), time.perf_counter()
        show("\n".join(heading(bench.report([]), named=args.set != "ops")) + "\n")
        group = None
        for case in cases:
            found = bench.rows(case)
            rows += found
            new, group = found[0].group != group, found[0].group
            show("\n".join(lines_of(found, new, named)) + "\n")
            save(bench.report(rows), args.json)         # whatever comes, nothing measured is lost
        stolen = waited() - before, time.perf_counter() - start
        for line in remarks(first, limits(bench), rows, *stolen):
            show(f"\n{line}\n")
        return bench.report(rows)


def save(report, path):
    """Write the report as JSON, if there is a path to write it to."""
    if path:
        from minifm.atomic import atomic_file
        with atomic_file(path) as file:
            file.write(json.dumps(report, indent=1).encode())


def merged(args):
    """The reports of --from as one, shown: of a row in several the last counts, beside whatever
    any of them was compared with. Of each limit the highest counts, as in a run."""
    from minifm.testing.benchmark import Row
    from minifm.testing.table import heading, lines_of
    reports, rows = [load_report(path) for path in args.saved], {}
    whole = functools.reduce(joined, reports)
    for row in (Row(**row) for report in reports for row in report["rows"]):
        key = *_case(row), row.phase, row.backend, row.mode
        before = rows[key].versus if key in rows else {}
        rows[key] = replace(row, versus=before | row.versus)
    rows = [replace(row, fraction=row.rate / limit_of(row, whole["ceilings"]))
            if row.limit else row for row in sorted(rows.values(), key=_place(rows.values()))]
    whole["rows"] = [vars(row) for row in rows]
    show("\n".join(heading(whole, named=any(row.set != "ops" for row in rows))) + "\n")
    group = None
    for _, found in itertools.groupby(rows, key=_case):
        found = list(found)
        new, group = found[0].group != group, found[0].group
        show("\n".join(lines_of(found, new, whole["peers"])) + "\n")
    return whole


def joined(a, b):
    """Two reports as one, without rows. Raises ConfigError unless one machine made them."""
    for name, ours, theirs in [
            (name, a["machine"][name], b["machine"][name]) for name in ("processor", "cores")] + [
            (name, text, b["machine"]["backends"][name])
            for name, text in a["machine"]["backends"].items()
            if name in b["machine"]["backends"]]:
        if ours != theirs:
            raise ConfigError(f"--from: reports of different machines do not compare: {name} "
                              f"{ours!r} and {theirs!r}")
    rates = [{"read": {"": c["read"]}, "copy": {"": c["copy"]}, "FMA": c["FMA"], "bf16": c["bf16"]}
             for c in (a["ceilings"], b["ceilings"])]
    best = {limit: {name: max((side[limit][name] for side in rates if name in side[limit]),
                              key=lambda ceiling: ceiling["rate"])
                    for name in rates[0][limit] | rates[1][limit]} for limit in rates[0]}
    return a | {
        "machine": a["machine"] | {"backends": a["machine"]["backends"] | b["machine"]["backends"]},
        "peers": a["peers"] | b["peers"],
        "ceilings": {"FMA": best["FMA"], "bf16": best["bf16"], "read": best["read"][""],
                     "copy": best["copy"][""]}}


def limit_of(row, ceilings):
    """The rate that the row is held against."""
    ceiling = ceilings["FMA"][row.backend] if row.limit == "FMA" else ceilings[row.limit]
    return ceiling["rate"]


def _place(rows):
    """A key that sorts rows by set and group, each where it came first, and so by case."""
    first = {}
    for row in rows:
        for key in ((row.set, row.group), _case(row), (*_case(row), row.phase)):
            first.setdefault(key, len(first))
    return lambda row: (first[row.set, row.group], first[_case(row)],
                        first[*_case(row), row.phase])


def _case(row):
    """What the rows of one case share, and no others: an op may come in several sizes."""
    return row.set, row.title, row.inputs


def load_report(path):
    """What an earlier --json holds; raises FormatError."""
    from minifm.errors import FormatError
    from minifm.testing.benchmark import Row
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        [Row(**row) for row in report["rows"]]
        joined(report, report)
    except (ValueError, TypeError, KeyError):
        raise FormatError(path, None, "not what `minifm bench --json` of this version "
                          "writes") from None
    return report


# -- what the user asked for -----------------------------------------------------------------------


def check_files(args):
    """Before anything is measured: what cannot go together, and files that cannot be written."""
    named = {"--only": args.only, "--torch": args.torch, "--llama": args.llama, "--mode": args.mode}
    plain = {"--op": args.op, "--size": args.size}
    measuring = {**named, **plain, "--backend": args.backend, "--seconds": args.seconds,
                 "--quick": args.quick, "--set": args.set != "ops"}
    for flags, wrong, reason in (
            (measuring, args.saved, "--from measures nothing"),
            (named, args.set == "ops", "it needs --set kernels, step, sample, decode or all"),
            (plain, args.set != "ops", "it belongs to --set ops")):
        for flag, given in flags.items():
            if given and wrong:
                raise ConfigError(f"{flag}: {reason}")
    for flag, path in (("--json", args.json), ("--plot", args.plot)):
        if path and Path(path).is_dir():
            raise ConfigError(f"{flag}: {path} is a directory, not a file")
        if path and not Path(path).absolute().parent.is_dir():
            raise ConfigError(f"{flag}: there is no directory {Path(path).parent}")
    if args.plot and Path(args.plot).suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--plot: expected a name that ends in .png, .svg or .pdf, got "
                          f"{args.plot!r}")


def chosen_cases(args):
    """The names of the ops, or the Cases of the named set."""
    if args.set == "ops":
        return chosen_ops(args.op)
    from minifm.testing import cases
    sets = cases.SETS if args.set == "all" else [args.set]
    known = [case for name in sets for case in cases.SETS[name]()]
    found = [case for case in known if not args.only
             or any(f" {text}".lower() in f" {case.title}".lower() for text in args.only)]
    if not found:
        groups = dict.fromkeys(case.group for case in known)
        raise ConfigError(f"--only: no case of --set {args.set} has that in its name; there are "
                          f"{', '.join(groups)}, such as {known[0].title!r}")
    quick = [case for case in found if case.quick]
    return quick or found if args.quick else found


def chosen_peers(args):
    """The Peers to compare with: those that were named, and those that this interpreter has."""
    from minifm import backends
    from minifm.testing.peers import LLAMA, PYTORCH, Peer
    if args.set == "ops":
        return
    threads = backends.get("c").threads if backends.why_not("c") is None else os.cpu_count()
    modes = [_near("--mode", mode, MODES, mode) for mode in args.mode or MODES]
    libraries = [(PYTORCH, args.torch, modes)]
    if args.set in ("decode", "all"):
        libraries.append((LLAMA, args.llama, None))
    elif args.llama:
        raise ConfigError("--llama: it needs --set decode or all")
    for library, python, only in libraries:
        if python or importlib.util.find_spec(library.module):
            yield Peer(library, python or sys.executable, threads, only)


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
    raise ConfigError(f"{flag}: {given!r} is unknown; {meant(wanted, known)}")
