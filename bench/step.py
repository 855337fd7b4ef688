"""A whole training step (forward, backward, clipping, AdamW) beside PyTorch's, taking turns.

    python bench/step.py --torch path/to/python/with/torch

Without --torch it times minifm alone. Prints medians with their spread, the ratio, the FLOP/s,
and where a warm step's time goes: a table by op, whose sum is compared with the step.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time

import minifm as mf
from minifm.errors import UserError
from minifm.testing.benchmark import agreeing, attempt, spread, take_turns
from minifm.testing.cases import STEPS, shown_sizes, steps
from minifm.testing.peers import PYTORCH, Peer
from minifm.testing.peers.clock import Timed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=STEPS, default="L6")
    parser.add_argument("--backend", default="c")
    parser.add_argument("--seconds", type=float, default=30, help="for all turns (default: 30)")
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has torch")
    parser.add_argument("--mode", default="eager", help="of PyTorch, as of minifm bench "
                        "(default: eager)")
    args = parser.parse_args()
    try:
        run(args)
    except UserError as problem:
        sys.exit(f"step.py: {problem}")


def run(args):
    (family, sizes), backend = STEPS[args.shape], mf.use(args.backend).backend
    case = next(iter(steps({args.shape: (family, sizes)})))
    ours = case.subject(backend, 0)
    sides = {"minifm": Timed(ours.calls("step"))}
    names = {"minifm": f"minifm {backend.describe()}"}
    if args.torch:
        peer = Peer(PYTORCH, args.torch, getattr(backend, "threads", 0) or os.cpu_count())
        sides["peer"] = prepared(peer, case, args.mode, ours)
        names["peer"] = f"{peer.name}, {args.mode}"
    turns = take_turns(sides, args.seconds)
    print(f"shape    {family}, {shown_sizes(sizes)}")
    for side, own in turns.items():
        if isinstance(own, str):
            raise UserError(f"{names[side]}: {own}")
        print(report(names[side], spread(own), ours.flops))
    if args.torch:
        ratios = [statistics.median(a) / statistics.median(b)
                  for a, b in zip(turns["minifm"], turns["peer"])]
        print(f"ratio    minifm takes {statistics.median(ratios):.2f} × the peer's time "
              f"({min(ratios):.2f} … {max(ratios):.2f} over {len(ratios)} turns)")
        peer.close()
    account(ours)


def prepared(peer, case, mode, ours):
    """The peer's step, or a line that says why there is none."""
    with tempfile.TemporaryDirectory() as folder:
        expected = ours.share(folder)
        return attempt(lambda: agreeing(
            peer, case.request | {"mode": mode} | ({"folder": folder} if expected else {}),
            expected))


def report(name, times, flops):
    median, low, high = (times[which] for which in ("median", "fastest", "slowest"))
    return (f"{1e3 * median:8.1f} ms ({1e3 * low:.1f} … {1e3 * high:.1f}), "
            f"{flops / median / 1e9:.0f} GFLOP/s   {name}")


def account(ours):
    """Where one warm step goes: each op, the optimizer, and what is left for Python between."""
    start = time.perf_counter()
    with mf.OpTimer() as timer:
        loss = ours.forward_backward()
        backward_done = time.perf_counter()
        ours.update()
        loss.item()
    end = time.perf_counter()
    whole, optimizer = end - start, end - backward_done
    accounted = timer.total + optimizer
    print(f"\n{timer.table()}")
    for name, seconds in (("clipping and AdamW", optimizer), ("accounted for", accounted),
                          ("the step", whole)):
        print(f"{name:<39}{1e3 * seconds:>10.2f}{seconds / whole:>8.1%}")


if __name__ == "__main__":
    main()
