"""`minifm demo`: in a few minutes, a small GPT learns Python from the standard library's source,
and then a small UNet to make handwritten digits (digits.py).

It shows the whole way: text, tokenizer, training, held-out evaluation beside gzip and xz, writing,
and a report. The same is done by `pretrain` and `generate`, with your own text.
"""

import importlib.util
import itertools
import time
from dataclasses import asdict
from pathlib import Path

from minifm.cli import program
from minifm.cli.generate import show
from minifm.cli.report import Report, compression, page

EXAMPLE = """\
example:
  minifm demo
  minifm demo --minutes 20 --out runs/longer
  minifm demo --digit-minutes 0
"""

VOCABULARY, BATCH, LENGTH = 2048, 16, 128
SHAPE = {"layers": 4, "heads": 4, "width": 192, "context": LENGTH}
RATES = {"learning_rate": 3e-3, "final_learning_rate": 1e-4}
COMMANDS = (
    "{minifm} generate {out}/last \"def parse_date(text):\" --temperature 0.5 --seed 1",
    "{minifm} pretrain --data YOUR.txt --out runs/mine --preset tiny --steps 500",
    "{minifm} bench --quick",
)
# Headers to complete; the first three that the corpus does not contain are taken. They do not end
# in a line feed: text has it in one token with the indentation that follows.
HEADERS = (
    'def read_temperatures(path):\n    """Read one temperature from each line of a file."""',
    'class RingBuffer:\n    """A list of fixed size that forgets its oldest item."""\n\n'
    '    def __init__(self, size):',
    'def count_vowels(text, vowels="aeiou"):',
    'def is_leap_year_in(calendar, year):\n    """Return True if',
    'class OrderedBag(list):\n    def add(self, item):',
    'def mean_of_columns(rows):\n    """',
)


def arguments(parser, argv):
    parser.add_argument("--out", metavar="DIRECTORY", default="runs/demo",
                        help="where the run goes (default: runs/demo, or where one is already, "
                             "runs/demo-2 and so on)")
    parser.add_argument("--minutes", type=float, default=3.0, metavar="FLOAT",
                        help="how long to train the GPT, about (default: 3)")
    parser.add_argument("--digit-minutes", type=float, default=2.0, metavar="FLOAT",
                        help="how long to train the UNet, about; 0 leaves it out (default: 2)")
    parser.add_argument("--seed", type=int, default=0, metavar="INT",
                        help="of weights, data order and text (default: 0)")


def run(args):
    from minifm.backends.ceilings import flop_ceiling
    from minifm.cli.summaries import of_text
    from minifm.errors import ConfigError
    from minifm.training.pretrain import TextConfig, prepare
    if not 0 < args.minutes < 1e5:
        raise ConfigError(f"minutes: expected a number above 0, got {args.minutes}")
    if not 0 <= args.digit_minutes < 1e5:
        raise ConfigError("digit_minutes: expected a number of at least 0, got "
                          f"{args.digit_minutes}")
    out = free_directory(args.out)
    if out != Path(args.out):
        print(f"{args.out} holds an earlier run; this one goes to {out}")
    print("minifm demo: a small GPT reads the source of Python's standard library\n")
    config = configuration(args.minutes, args.seed)
    prepared = prepare(out, TextConfig(vocabulary=VOCABULARY), SHAPE, config,
                       ceiling=flop_ceiling().rate)
    print("\n".join(of_text(prepared)), end="\n\n", flush=True)
    return train_and_tell(prepared, out, args.seed, args.digit_minutes)


def train_and_tell(prepared, out, seed, digit_minutes):
    """Train, measure, write, then the second act, and the report; the exit status."""
    from minifm.cli.pretrain import trained
    trainer, started = prepared.trainer, time.perf_counter()
    status = trained(trainer, after=" (which trains to the end, and makes no report)")
    if status:
        return status
    seconds = time.perf_counter() - started
    bits = yardsticks(prepared)
    print("\nheld-out bits per byte (lower is better)")
    for name, value in bits.items():
        print(f"  {name:<12}{value:.3f}")
    samples = write(trainer, headers(prepared.corpus), seed)
    status, act = second_act(out, digit_minutes, seed)
    if status:
        return status
    commands = [command.format(minifm=program(), out=out)
                for command in (*COMMANDS, *(act.commands if act else ()))]
    (out / "index.html").write_text(page(report(prepared, bits, samples, commands, seconds, act)),
                                    "utf-8")
    print(f"\nreport      {out}/index.html\nmodel       {out}/last (opens in other libraries too)")
    print("\nnext, try:\n" + "\n".join(f"  {command}" for command in commands))
    return 0


def second_act(out, minutes, seed):
    """(exit status, the digits.Act, or None where it is not wanted, or has no data here)."""
    from minifm.cli.digits import act
    from minifm.media.digits import MISSING
    if not minutes:
        return 0, None
    if importlib.util.find_spec("sklearn") is None:
        print(f"\nno second act: {MISSING}")
        return 0, None
    return act(out, minutes, seed)


def free_directory(wanted):
    """`wanted`, or where a run is there already, wanted-2, wanted-3, …"""
    from minifm.training import checkpoint
    names = itertools.chain([wanted], (f"{wanted}-{n}" for n in itertools.count(2)))
    return next(Path(name) for name in names if not checkpoint.steps_in(name))


def configuration(minutes, seed):
    """The TrainConfig of a run that takes about so long here: a step is timed first."""
    from minifm.models import GPTConfig
    from minifm.training.config import TrainConfig
    from minifm.training.timing import measured_step
    step = measured_step(GPTConfig(vocabulary=VOCABULARY, **SHAPE), BATCH, LENGTH)
    steps = max(20, int(60 * minutes / step))
    every = max(1, steps // 6)
    return TrainConfig(steps=steps, batch=BATCH, seed=seed, evaluate_every=every,
                       evaluate_batches=8, save_every=every, **RATES)


def yardsticks(prepared):
    """{name: bits per byte} on all held-out documents: the model's first, then gzip's and xz's."""
    trainer = prepared.trainer
    ours = trainer.evaluate(trainer.held_out.count)["bits_per_byte"]
    return {"minifm": ours} | compression([document.text for document in prepared.held_out_text])


def headers(corpus, wanted=3):
    """The first `wanted` of HEADERS whose first line the corpus does not contain."""
    lines = {header: header.split("\n")[0].encode() for header in HEADERS}
    found = {header for document in corpus for header, line in lines.items()
             if line in document.text}
    return [header for header in HEADERS if header not in found][:wanted]


def write(trainer, prompts, seed):
    """Complete each prompt, as the tokens come: [(prompt, completion)]."""
    from minifm.generation import Sampling, generate
    samples = []
    print("\nwhat it writes")
    for number, prompt in enumerate(prompts):
        print(f"\n--- {number + 1} of {len(prompts)}: a header that the corpus does not have")
        show(prompt)
        room = LENGTH - len(trainer.tokenizer.encode(prompt))
        done = generate(trainer.model, trainer.tokenizer, [prompt], max_tokens=room, seed=seed,
                        strategy=Sampling(temperature=0.5, top_p=0.95), stop=["\n\n\n", "\nclass "],
                        on_text=lambda row, piece: show(piece))
        show("\n")
        samples.append((prompt, done[0].text))
    return samples


def report(prepared, bits, samples, commands, seconds, act):
    """What index.html says."""
    from minifm import __version__, backends
    trainer = prepared.trainer
    shape = trainer.model.config
    facts = {
        "model": f"GPT, {shape.parameters:,} parameters: {shape.layers} layers, {shape.width} "
                 f"wide, {shape.heads} heads, context {shape.context}",
        "text": f"{prepared.corpus.description}: {prepared.corpus.count:,} documents, "
                f"{prepared.corpus.size / 1e6:.1f} MB, SHA-256 {prepared.corpus.sha256[:16]}…",
        "training": f"{trainer.step:,} steps, {trainer.tokens:,} tokens read in "
                    f"{seconds / 60:.1f} minutes",
        "backend": backends.active().describe(), "minifm": __version__,
        "settings": ", ".join(f"{k} {v}" for k, v in asdict(trainer.config).items()),
    }
    return Report(
        title="A small GPT that has read Python's standard library",
        lead=f"Trained from scratch by minifm in {seconds / 60:.1f} minutes on this machine.",
        held_out=[document.text for document in prepared.held_out_text], bits_per_byte=bits,
        samples=samples, facts=facts, commands=commands, act=act)
