"""`minifm generate`: load a model from a directory or the hub, and let it write."""

import argparse
import sys

from minifm.backends.reference.packed import FORMATS
from minifm.cli.arguments import add_config, add_fields, build, settings
from minifm.generation.sampling import Sampling
from minifm.nn.cache import FORMATS as CACHE_FORMATS
from minifm.nn.cache import check_format

EXAMPLE = """\
example:
  minifm generate runs/demo/last "def read_json(path):" --temperature 0.7 --stop "\\n\\n\\n"
  echo "Once upon a time" | minifm generate openai-community/gpt2 --max-tokens 60 --seed 3
"""


def arguments(parser, argv):
    parser.add_argument("model", help="a directory with config.json and model.safetensors, or of "
                                      "an adapter, or a name on the Hugging Face hub")
    parser.add_argument("prompt", nargs="*", help="what to continue; several are written side by "
                                                  "side; none: standard input")
    parser.add_argument("--max-tokens", type=int, default=argparse.SUPPRESS, metavar="INT",
                        help="stop after so many new tokens (default: 200)")
    parser.add_argument("--stop", action="append", default=argparse.SUPPRESS, metavar="TEXT",
                        help=r"stop before this string; may be repeated; \n is a line feed")
    parser.add_argument("--seed", type=int, default=argparse.SUPPRESS, metavar="INT",
                        help="the same seed writes the same text (default: 0)")
    parser.add_argument("--format", choices=FORMATS, default=argparse.SUPPRESS,
                        help="how the weights are packed when they are loaded; int8 and int4 "
                             "change the text a little and are faster (default: fp32, which is "
                             "exact, or as they are stored)")
    parser.add_argument("--cache", choices=CACHE_FORMATS, default=argparse.SUPPRESS,
                        help="how keys and values are kept; bf16 halves them, which is faster late "
                             "in a long text (default: fp32, as they are computed)")
    add_config(parser)
    add_fields(parser, Sampling, "sampling, in the order in which it acts")


def run(args):
    from minifm.generation import generate
    from minifm.generation.generate import check_prompts
    from minifm.hub import load_causal, resolve, tokenizer_of
    from minifm.models import pack_model, packed_format
    from minifm.text import Tokenizer
    said = settings(args, Sampling, also={
        "max_tokens": int, "stop": tuple[str, ...], "seed": int, "format": str, "cache": str})
    check_format(said.get("cache"))
    sampling = build(Sampling, said)
    directory = resolve(args.model)
    tokenizer, model = Tokenizer.load(tokenizer_of(directory)), load_causal(directory)
    format = said.get("format", packed_format(model) or "fp32")
    if format != packed_format(model):      # fp32: the same numbers, laid out to be read in order
        pack_model(model, format)
    # The words of the command line, byte for byte, even where they are not UTF-8.
    prompts = [p.encode("utf-8", "surrogateescape") for p in args.prompt] \
        or [sys.stdin.buffer.read().removesuffix(b"\n")]
    stop = [s.replace("\\n", "\n") for s in said.get("stop", ())]
    max_tokens, single = said.get("max_tokens", 200), len(prompts) == 1
    check_prompts([tokenizer.encode(p) for p in prompts], model.config.context, max_tokens)
    if single:                          # now that nothing is in the way
        show(prompts[0].decode("utf-8", "replace"))
    done = generate(model, tokenizer, prompts, strategy=sampling, stop=stop,
                    max_tokens=max_tokens, seed=said.get("seed", 0), cache=said.get("cache"),
                    on_text=(lambda row, piece: show(piece)) if single else None)
    for number, (prompt, completion) in enumerate(zip(prompts, done), 1):
        if not single:
            show(f"--- {number} of {len(prompts)} ({completion.reason})\n"
                 f"{prompt.decode('utf-8', 'replace')}{completion.text}\n")
        elif completion.reason == "context":
            print(f"\nminifm: the model's context of {model.config.context} tokens is full",
                  file=sys.stderr)
    if single:
        show("\n")


def show(text):
    """Print at once, whatever the terminal's encoding cannot show."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()
