"""`minifm merge`: an adapter and the model that it is of, as one model that needs no adapter."""

EXAMPLE = """\
example:
  minifm merge runs/tuned/last --out tuned
  minifm merge my-adapter --base openai-community/gpt2 --format int4 --out tuned
"""


def arguments(parser, argv):
    from minifm.backends.reference.packed import FORMATS
    parser.add_argument("adapter", help="a directory with adapter_config.json and "
                                        "adapter_model.safetensors, a run's directory, or a name "
                                        "on the Hugging Face hub")
    parser.add_argument("--out", required=True, metavar="DIR",
                        help="the directory to write; it must not exist")
    parser.add_argument("--base", metavar="MODEL",
                        help="the model, a directory or a name on the hub (default: the one that "
                             "adapter_config.json names)")
    parser.add_argument("--format", choices=FORMATS,
                        help="how the model was packed while the adapter learnt: it is rounded so "
                             "first, and the sum is kept in float32 (default: as the adapter says; "
                             "fp32, not rounded, where it does not)")


def run(args):
    from minifm.atomic import atomic_directory
    from minifm.errors import ConfigError
    from minifm.hub import (
        base_of,
        has_tokenizer,
        headed_as,
        is_adapter,
        learnt_format,
        load_adapter,
        load_model,
        pack_as_learnt,
        resolve,
        save_model,
    )
    from minifm.models import unpack_model
    from minifm.nn import merge_adapters
    from minifm.text import Tokenizer
    directory = resolve(args.adapter)
    if not is_adapter(directory):
        raise ConfigError(f"{args.adapter}: expected an adapter, there is no adapter_config.json")
    base = base_of(directory) if args.base is None else resolve(args.base)
    if is_adapter(base):
        raise ConfigError(f"base: {args.base} is an adapter itself: merge that first")
    place = next((place for place in (directory, base) if has_tokenizer(place)), None)
    tokenizer = None if place is None else Tokenizer.load(place)
    model = headed_as(directory, load_model(base))
    pack_as_learnt(model, args.format or learnt_format(directory))
    load_adapter(model, directory)
    unpack_model(model)
    inputs = sample(model)
    with atomic_directory(args.out) as aside:
        change = merge_adapters(model, *inputs)
        save_model(model, aside, tokenizer)
    print(f"{args.out}: a {type(model).__name__}, the adapter of {args.adapter} added in float32")
    print(f"  logits      change by at most {change:.2g} (rounding), over {inputs[-1].size} tokens")


def sample(model):
    """Token ids for the model to read, the same every time, as the inputs of a call of it."""
    from minifm.models.seq2seq import Seq2SeqModel
    from minifm.rng import Rng
    shape = 4, min(32, model.config.context or 32)              # None: any length
    names = ("source", "ids") if isinstance(model, Seq2SeqModel) else ("ids",)
    return [Rng(0).child(name).integers(0, model.config.vocabulary, shape) for name in names]
