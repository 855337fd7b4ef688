"""`minifm quantize`: a model's weights in low precision, and what that changes in its answers."""

import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

EXAMPLE = """\
example:
  minifm quantize runs/demo/last --format int8 --out runs/demo-int8
  minifm quantize openai-community/gpt2 --format int4 --out gpt2-int4 --text book.txt
"""


def arguments(parser, argv):
    from minifm.hub.directory import STORED
    parser.add_argument("model", help="a directory with config.json and model.safetensors, or a "
                                      "name on the Hugging Face hub")
    parser.add_argument("--format", choices=STORED, required=True,
                        help="64, 34 or 18 bytes for 32 weights, in place of 128")
    parser.add_argument("--out", required=True, metavar="DIR",
                        help="the directory to write; it must not exist")
    parser.add_argument("--text", action="append", default=[], metavar="FILE",
                        help="text to measure on, which the model was not trained on; may be "
                             "repeated (default: what the model's own run has held out)")
    parser.add_argument("--tokens", type=int, default=8192, metavar="INT",
                        help="measure on at most so many tokens (default: 8192)")


def run(args):
    from minifm.atomic import atomic_directory
    from minifm.errors import ConfigError
    from minifm.hub import is_adapter, load_causal, resolve, save_model
    from minifm.models import pack_model, packed_format
    from minifm.text import Tokenizer
    if args.tokens < 1:
        raise ConfigError(f"tokens: expected at least 1, got {args.tokens}")
    directory = resolve(args.model)
    if is_adapter(directory):
        raise ConfigError(f"{args.model}: expected a model, this is an adapter of one: merge it "
                          "first")
    tokenizer, model = Tokenizer.load(directory), load_causal(directory)
    if packed_format(model):
        raise ConfigError(f"{args.model}: its weights are packed already, as "
                          f"{packed_format(model)}; quantize the model that they were made of")
    with atomic_directory(args.out) as aside, tempfile.TemporaryDirectory() as cache:
        windows = _windows(model, tokenizer, directory, args, cache)
        before = windows and measure(model, windows)
        pack_model(model, args.format)
        after = windows and measure(model, windows)
        save_model(model, aside, tokenizer)
    print(f"{args.out}: the weights of products in {args.format}, all else in float32")
    print(f"  size        {_megabytes(directory)} -> {_megabytes(args.out)}")
    if windows:
        _report(before, after, windows)
        if windows.tokens < FEW:
            print(f"minifm: {windows.tokens:,} tokens are too few to judge by: take a text of some "
                  "thousands", file=sys.stderr)
    else:
        print("minifm: the error is not measured: there is no text to measure on; give some by "
              "--text", file=sys.stderr)


# -- the error -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What a model says of a text.

    perplexity   e to the mean loss of a token, in nats
    logits       [windows, T, V] of the first windows, float32
    """

    perplexity: float
    logits: np.ndarray


@dataclass(frozen=True)
class Windows:
    """Held-out text, cut up: `batches` of (ids [B, T], targets [B, T]), which predict `tokens`."""

    batches: list
    tokens: int
    description: str


FEW = 256                   # tokens below which a perplexity says little
COMPARED = 1 << 24          # logits that are kept to compare, at most: 64 MB


def measure(model, windows):
    """What `model` says of the windows, by its fused loss and, for the first ones, its logits."""
    from minifm.tensor import no_grad
    nats, logits = 0.0, None
    with no_grad():
        for ids, targets in windows.batches:
            nats += model.loss(ids, targets, denominator=1).item()
        ids, V = windows.batches[0][0], model.config.vocabulary
        length = max(1, min(ids.shape[1], COMPARED // V))
        rows = max(1, COMPARED // (V * length))
        logits = model(ids[:rows, :length]).numpy()
    with np.errstate(over="ignore"):
        return Measured(float(np.exp(nats / windows.tokens)), logits)


def _report(before, after, windows):
    change = np.abs(after.logits - before.logits)
    ratio = after.perplexity / before.perplexity - 1 if before.perplexity else math.nan
    print(f"  perplexity  {before.perplexity:.4f} -> {after.perplexity:.4f} ({ratio:+.2%}) over "
          f"{windows.tokens:,} tokens of {windows.description}")
    print(f"  logits      change by at most {change.max():.4f}, by {change.mean():.4f} in the mean "
          f"({change.size:,} of them, of standard deviation {before.logits.std():.4f})")


# -- the text ------------------------------------------------------------------------------------


def _windows(model, tokenizer, directory, args, cache):
    """The Windows to measure on, or None where no text is to be had."""
    from minifm.ops.loss import IGNORE
    from minifm.text import shards
    from minifm.text.packing import HeldOutBatches
    documents = _documents(directory, args.text)
    if documents is None:
        return None
    tokens = shards.store(documents, tokenizer, cache)
    length = min(model.config.context, args.tokens)
    held_out = HeldOutBatches(tokens, batch=max(1, min(8, 2048 // length)), length=length)
    batches, left = [], args.tokens
    for i in range(held_out.count):
        if left <= 0:
            break
        ids, targets = held_out.batch(i)
        places = np.flatnonzero(targets != IGNORE)
        targets.reshape(-1)[places[left:]] = IGNORE
        left -= len(places)
        batches.append((ids, targets))
    return Windows(batches, args.tokens - max(left, 0), documents.description)


def _documents(directory, text):
    """The text given, or what the run that `directory` belongs to has held out; else None."""
    from minifm.text.corpus import Corpus
    from minifm.training.run import read_settings
    if text:
        return Corpus(text)
    run = Path(directory).resolve().parent
    if not (run / "run.json").exists():
        return None
    settings = read_settings(run)
    # A run that learnt from labels has held out no text, and standard input is not read again.
    if "pattern" not in settings or "-" in settings["data"]:
        return None
    corpus = Corpus(settings["data"], pattern=settings["pattern"],
                    separator=settings["separator"])
    return corpus.split(settings["held_out"], settings["seed"])[1]


def _megabytes(directory):
    """The size of the weights' files."""
    size = sum(file.stat().st_size for file in Path(directory).glob("*.safetensors"))
    return f"{size / 1e6:,.1f} MB"
