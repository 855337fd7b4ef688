"""A whole training step (forward, backward, clipping, AdamW) beside PyTorch's, taking turns.

    python bench/step.py --torch path/to/python/with/torch

Without --torch it times minifm alone. Prints medians with their spread, the ratio, the FLOP/s,
and where a warm step's time goes: a table by op, whose sum is compared with the step.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import minifm as mf
from minifm.models import GPT, GPTConfig
from minifm.training.optim import AdamW

SHAPES = {  # layers, width, heads, length, batch, vocabulary
    "L6": (6, 384, 6, 256, 8, 65),
    "L4": (4, 128, 4, 64, 12, 65),
    "gpt2": (12, 768, 12, 256, 2, 50257),
}


class Peer:
    """bench/peer_torch.py in a process of its own; `step()` asks for one step's seconds."""

    def __init__(self, python, shape, threads):
        script = Path(__file__).with_name("peer_torch.py")
        self.process = subprocess.Popen(
            [python, str(script), *map(str, (*shape, threads))], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.name = self.process.stdout.readline().strip()
        if not self.name:
            sys.exit(f"{python} cannot run {script}: does it have torch?")

    def step(self):
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


class Ours:
    """minifm's side: the same model, optimizer and clipping."""

    def __init__(self, shape):
        L, C, H, T, B, V = shape
        self.config = GPTConfig(vocabulary=V, context=T, layers=L, heads=H, width=C)
        self.model = GPT(self.config, mf.Rng(0))
        self.optimizer = AdamW(self.model.parameters())
        ids = mf.Rng(1).integers(0, V, (B, T + 1))
        self.inputs, self.targets = ids[:, :-1], ids[:, 1:]
        self.flops = B * T * self.config.flops_per_token(T, training=True)

    def step(self):
        start = time.perf_counter()
        loss = self.model.loss(self.inputs, self.targets)
        loss.backward()
        backward_done = time.perf_counter()
        norm = self.optimizer.gradient_norm()
        self.optimizer.update(1e-4, min(1.0, 1.0 / norm))
        self.optimizer.zero_grad()
        loss.item()
        end = time.perf_counter()
        self.optimizer_seconds = end - backward_done
        return end - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="L6")
    parser.add_argument("--backend", default="c")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has torch")
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    backend = mf.use(args.backend).backend
    ours = Ours(shape)
    threads = getattr(backend, "threads", 0) or len(os.sched_getaffinity(0))
    peer = Peer(args.torch, shape, threads) if args.torch else None
    sides = [ours, peer] if peer else [ours]
    for side in sides * 2:                              # warm
        side.step()
    times = {side: [] for side in sides}
    for _ in range(args.rounds):                        # in turn, so that drift hits both
        for side in sides:
            times[side].append(side.step())
    print("shape    " + " ".join(f"{k}{v}" for k, v in zip("LCHTBV", shape)))
    print(report(f"minifm {backend.describe()}", times[ours], ours.flops))
    if peer:
        print(report(peer.name, times[peer], ours.flops))
        ratios = [a / b for a, b in zip(times[ours], times[peer])]
        print(f"ratio    minifm takes {statistics.median(ratios):.2f} × the peer's time "
              f"({min(ratios):.2f} … {max(ratios):.2f} over {args.rounds} rounds)")
    account(ours)


def report(name, times, flops):
    middle = statistics.median(times)
    return (f"{1e3 * middle:8.1f} ms ({1e3 * min(times):.1f} … {1e3 * max(times):.1f}), "
            f"{flops / middle / 1e9:.0f} GFLOP/s   {name}")


def account(ours):
    """Where one warm step goes: each op, the optimizer, and what is left for Python between."""
    with mf.OpTimer() as timer:
        whole = ours.step()
    optimizer = ours.optimizer_seconds
    accounted = timer.total + optimizer
    print(f"\n{timer.table()}")
    for name, seconds in (("clipping and AdamW", optimizer), ("accounted for", accounted),
                          ("the step", whole)):
        print(f"{name:<39}{1e3 * seconds:>10.2f}{seconds / whole:>8.1%}")


if __name__ == "__main__":
    main()
