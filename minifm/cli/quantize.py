"""`minifm quantize`: a model's weights in low precision, and what that changes in its answers."""

import sys
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
    documents = _documents(directory, args.text)
    with atomic_directory(args.out) as aside:
        before = documents and answers(model, tokenizer, documents, args.tokens)
        pack_model(model, args.format)
        after = documents and answers(model, tokenizer, documents, args.tokens)
        save_model(model, aside, tokenizer)
    print(f"{args.out}: the weights of products in {args.format}, all else in float32")
    print(f"  size        {_megabytes(directory)} -> {_megabytes(args.out)}")
    if documents:
        print("\n".join(report(before, after, documents)))
        if before.found.tokens < FEW:
            print(f"minifm: {before.found.tokens:,} tokens are too few to judge by: take a text of "
                  "some thousands", file=sys.stderr)
    else:
        print("minifm: the error is not measured: there is no text to measure on; give some by "
              "--text", file=sys.stderr)


# -- what it changes -----------------------------------------------------------------------------


FEW = 256                   # tokens below which a perplexity says little
COMPARED = 1 << 24          # logits that are kept to compare, at most: 64 MB


@dataclass(frozen=True)
class Answers:
    """What a model says of a text.

    found    its perplexity, a Measured (evaluation/perplexity.py)
    logits   [B, T, V] of the beginning of the text, float32
    """

    found: object
    logits: np.ndarray


def answers(model, tokenizer, documents, tokens):
    """What `model` says of at most so many tokens of the documents, read in windows side by
    side."""
    from minifm.evaluation import WindowConfig, perplexity
    from minifm.tensor import no_grad
    length = min(model.config.context, tokens)
    config = WindowConfig(context=length, stride=length, tokens=tokens,
                          batch=max(1, min(8, 2048 // length)))
    found = perplexity(model, tokenizer, (document.text for document in documents), config)
    most = min(found.tokens, max(1, COMPARED // model.config.vocabulary))
    ids = beginning(tokenizer, documents, most, min(length, most))
    with no_grad():
        return Answers(found, model(ids).numpy())


def beginning(tokenizer, documents, most, length):
    """The first ids of the documents, at most `most`, as whole rows: int64 [B, length]."""
    ids = []
    for document in documents:
        ids += tokenizer.encode(document.text).tolist()
        if len(ids) >= most:
            break
    rows = min(len(ids), most) // length
    return np.array(ids[: rows * length], np.int64).reshape(rows, length)


def report(before, after, documents):
    """The lines that tell how the answers have changed."""
    change = np.abs(after.logits - before.logits)
    was, now = before.found.perplexity, after.found.perplexity
    return [f"  perplexity  {was:.4f} -> {now:.4f} ({now / was - 1:+.2%}) over "
            f"{before.found.tokens:,} tokens of {documents.description}",
            f"  logits      change by at most {change.max():.4f}, by {change.mean():.4f} in the "
            f"mean ({change.size:,} of them, of standard deviation {before.logits.std():.4f})"]


# -- the text ------------------------------------------------------------------------------------


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
