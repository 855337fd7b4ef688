"""A report of `minifm bench` as lines of text: the machine and its limits, a table of rows, and
what a reader must know before believing it. What the columns mean, `minifm bench --help` says.
"""

import math

RISEN = 1.03        # a limit that rises by more during the run deserves a word
DISTURBED = 0.02    # and so does a run that waited for a larger share of its time


def heading(report, named):
    """The machine, the backends, the limits, and the names of the columns."""
    machine = report["machine"]
    settings = "".join(f", {name}={value}" for name, value in machine["settings"].items())
    lines = [f"machine    {machine['processor']}, {machine['cores']} cores, last-level cache "
             f"{machine['last_level_cache'] >> 20} MB{settings}"]
    lines += [f"{'backends' if i == 0 else '':<11}{name:<7}{text}"
              for i, (name, text) in enumerate(machine["backends"].items())]
    lines += [f"{'beside' if i == 0 else '':<11}{text}"
              for i, text in enumerate(report["peers"].values())]
    lines += [f"{'limits' if i == 0 else '':<11}{name:<7}{rate:<15}{how}"
              for i, (name, rate, how) in enumerate(_limit_lines(report["ceilings"]))]
    lines += [f"arrays     in copies that fill {report['footprint'] >> 20} MB, used in turn: no "
              "call finds its own in a cache", ""]
    if named:
        others = [f"× {name}" for name in ("numpy", *report["peers"])]
        return [*lines, _named("", "", "median", "(fastest … slowest)", "rate", "of limit", others)]
    return [*lines, _columns("", "", "threads", "median", "(fastest … slowest)", "rate",
                             "of limit", "× numpy")]


def _limit_lines(ceilings):
    for ceiling in {c["how"]: c for c in ceilings["FMA"].values()}.values():
        yield "FMA", rate_text(ceiling["rate"], "FLOP/s"), ceiling["how"]
    for ceiling in ceilings["bf16"].values():
        yield "bf16", rate_text(ceiling["rate"], "FLOP/s"), ceiling["how"]
    yield "read", rate_text(ceilings["read"]["rate"], "B/s"), ceilings["read"]["how"]
    yield ("copy", rate_text(ceilings["copy"]["rate"], "B/s"),
           f"{ceilings['copy']['how']}, bytes read and written")


def lines_of(rows, new, peers):
    """What is shown of the rows of one case; `new`: its group is another than the last one's.
    `peers` are the libraries that the heading names."""
    return ["", *op_table(rows)] if rows[0].set == "ops" else named_table(rows, new, peers)


def op_table(rows):
    """The lines of one op: a row for each phase and backend."""
    lines, phase = [f"{rows[0].group}  {rows[0].inputs}"], None
    for row in rows:
        lines.append(line(row, row.phase if row.phase != phase else ""))
        phase = row.phase
    return lines


def line(row, phase):
    """One row of the table."""
    if row.problem:
        return f"  {phase:<9} {_who(row):<10} {row.problem}"
    versus = row.versus.get("numpy")
    return _columns(phase, _who(row), "?" if row.threads is None else row.threads,
                    time_text(row.median), _spread(row), *_rate(row),
                    f"{versus['median']:.2f}" if versus else "", _notes(row))


def _columns(phase, who, threads, median, spread, rate, fraction, ratio, notes=""):
    return (f"  {phase:<9} {who:<10} {threads:>7} {median:>9} {spread:>20} {rate:>12} "
            f"{fraction:>10} {ratio:>8}  {notes}").rstrip()


def named_table(rows, new, peers):
    """The lines of a case of a named set: one for each phase on each backend, NumPy's only where
    nothing else computes, and one for whoever could not."""
    lines, ours = ["", rows[0].group] if new else [], [row for row in rows if row.mode is None]
    alone = all(row.backend == "numpy" for row in ours)
    for row in rows:
        phase = f"{row.name} {row.phase}" if row.phase in ("forward", "backward") and any(
            other.phase != row.phase for other in rows) else row.name
        if row.problem:
            who = f"{row.backend} {row.mode}" if row.mode else _who(row)
            lines.append(f"  {phase:<28} {who}: {row.problem}")
        elif row.mode is None and (alone or row.backend != "numpy"):
            lines.append(_named(phase, _who(row), time_text(row.median), _spread(row), *_rate(row),
                                [_versus(row.versus.get(other)) for other in ("numpy", *peers)],
                                _notes(row)))
    return lines


def _named(name, who, median, spread, rate, fraction, others, notes=""):
    ratios = " ".join(f"{text:>24}" for text in others)
    return (f"  {name:<28} {who:<10} {median:>9} {spread:>20} {rate:>12} {fraction:>9} {ratios}  "
            f"{notes}").rstrip()


def _versus(found):
    """"1.31 (1.22 … 1.40) eager"."""
    if found is None:
        return ""
    mode = f" {found['mode']}" if found["mode"] else ""
    return f"{found['median']:.2f} ({found['low']:.2f} … {found['high']:.2f}){mode}"


def _who(row):
    return f"{row.backend} {row.isa}" if row.isa else row.backend


def _spread(row):
    return f"({scaled(row.fastest, row.median)} … {scaled(row.slowest, row.median)})"


def _rate(row):
    """The rate and its part of the limit, as text."""
    if not row.limit:
        return "view", ""
    if row.set == "decode":
        rate = f"{_three_digits(row.tokens / row.median)} tokens/s"
    elif row.set == "sample":
        rate = f"{_three_digits(1 / row.median)} calls/s"
    else:
        rate = rate_text(row.rate, "FLOP/s" if row.limit == "FMA" else "B/s")
    return rate, f"{'!' if beyond_limit(row) else ''}{row.fraction:.0%} {row.limit}"


def _notes(row):
    notes = ["cached"] if row.cached and row.limit != "FMA" and row.limit else []
    notes += [f"NumPy: {', '.join(row.on_numpy)}"] if row.on_numpy else []
    notes += [f"copies: {', '.join(row.copied)}"] if row.copied else []
    return "; ".join(notes)


def remarks(first, last, rows, waiting, seconds):
    """What a reader must know before believing the table. For `waiting` seconds, those of all
    threads added up, a thread of ours waited in these `seconds` for a core that another program
    had."""
    if waiting > DISTURBED * seconds:
        yield (f"In {seconds:.0f} s, threads waited {waiting:.1f} s (all of them together) for a "
               "core that another program had: these figures are too slow, and those of several "
               "threads most of all.")
    risen = [name for name in first if last[name] > RISEN * first[name]]
    if risen:
        yield (f"The limits ({', '.join(risen)}) rose during the run: the machine was busy when "
               "they were first measured, and the first rows look better than they are. (The rows "
               "of --json are held against the limits as last known.)")
    beyond = sum(map(beyond_limit, rows))
    if beyond:
        rows = "1 row is" if beyond == 1 else f"{beyond} rows are"
        yield (f"{rows} above the limit (marked !), which cannot be: the machine was "
               "busy while it was measured. Run again on a quiet machine.")


def beyond_limit(row):
    """Whether a row is faster than what was measured as its limit."""
    return row.fraction is not None and row.fraction > RISEN and not row.cached


def limits(bench):
    """{name: rate} of the ceilings as they are now."""
    rates = {f"FMA of {name}": ceiling.rate for name, ceiling in bench.fma.items()}
    rates |= {f"bf16 of {name}": ceiling.rate for name, ceiling in bench.bf16.items()}
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
