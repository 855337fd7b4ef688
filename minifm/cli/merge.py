"""`minifm merge`: an adapter and the model that it is of, as one model that needs no adapter; of a
diffusion model, with how it is sampled."""

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
    from minifm.generation.diffusion import Recipe
    from minifm.hub import (
        base_of,
        described_by,
        has_tokenizer,
        is_adapter,
        learnt_format,
        load_adapter,
        load_model,
        pack_as_learnt,
        resolve,
        save_model,
    )
    from minifm.hub.pipelines import INDEX
    from minifm.hub.schedulers import has_scheduler
    from minifm.models import DiT, UNet, unpack_model
    from minifm.nn import merge_adapters
    from minifm.text import Tokenizer
    directory = resolve(args.adapter)
    if (directory / INDEX).exists():
        return run_parts(args, directory)
    if not is_adapter(directory):
        raise ConfigError(f"{args.adapter}: expected an adapter, there is no adapter_config.json")
    base = base_of(directory) if args.base is None else resolve(args.base)
    if is_adapter(base):
        raise ConfigError(f"base: {args.base} is an adapter itself: merge that first")
    place = next((place for place in (directory, base) if has_tokenizer(place)), None)
    tokenizer = None if place is None else Tokenizer.load(place)
    model = described_by(directory, load_model(base))
    pack_as_learnt(model, args.format or learnt_format(directory))
    load_adapter(model, directory)
    unpack_model(model)
    if isinstance(model, (UNet, DiT)):
        recipe = next((Recipe.load(place, model) for place in (directory, base)
                       if has_scheduler(place)), None)
        return write(args, model, recipe)
    inputs = sample(model)
    with atomic_directory(args.out) as aside:
        change = merge_adapters(model, *inputs)
        save_model(model, aside, tokenizer)
    print(f"{args.out}: a {type(model).__name__}, the adapter of {args.adapter} added in float32")
    print(f"  logits      change by at most {change:.2g} (rounding), over {inputs[-1].size} tokens")


def run_parts(args, directory):
    """Merge the adapters of a network into it, in the directory of models that work as one."""
    from minifm.errors import ConfigError
    from minifm.generation.diffusion import Pipeline
    from minifm.nn import adapter_config
    for name in ("base", "format"):
        if getattr(args, name) is not None:
            raise ConfigError(f"{name}: {args.adapter} has several models, which name their own; "
                              "leave it out")
    pipeline = Pipeline.load(directory)
    if adapter_config(pipeline.network) is None:
        raise ConfigError(f"{args.adapter}: expected adapters, there are none in it")
    write(args, pipeline.network, pipeline.recipe)


def write(args, model, recipe):
    """Merge the adapters of a network that undoes noise, or of a Composite's, and write it with its
    Recipe, if it has one."""
    from minifm.atomic import atomic_directory
    from minifm.hub import save_model
    from minifm.models import network_of
    from minifm.nn import merge_adapters
    network = network_of(model)
    x, t, told = noisy(network)
    with atomic_directory(args.out) as aside:
        change = merge_adapters(network, x, t, **told)
        save_model(model, aside)
        if recipe is not None:
            recipe.save(aside)
    print(f"{args.out}: a {type(model).__name__}, the adapter of {args.adapter} added in float32")
    print(f"  predictions change by at most {change:.2g} (rounding), over {x.data.size:,} numbers")


def noisy(network):
    """(x [4, C, *space], t [4], {what else it is told}) for a network to read, the same
    every time."""
    import numpy as np

    from minifm.generation.condition import no_label
    from minifm.generation.diffusion import made_by
    from minifm.rng import Rng
    from minifm.tensor import Tensor
    config, rng, (C, space, _) = network.config, Rng(0), made_by(network)
    told = {} if no_label(config) is None else {"labels": np.zeros(4, int)}
    for name, shape in (("memory", (4, 8)), ("vector", (4,))):
        width = getattr(config, f"{name}_width", None)
        if width is not None:
            told[name] = Tensor(rng.child(name).host_normal((*shape, width)))
    x = rng.child("x").host_normal((4, C, *space))
    return Tensor(x), np.array([0.0, 10.0, 100.0, 900.0]), told


def sample(model):
    """Token ids for the model to read, the same every time, as the inputs of a call of it."""
    from minifm.models.seq2seq import Seq2SeqModel
    from minifm.rng import Rng
    shape = 4, min(32, model.config.context or 32)              # None: any length
    names = ("source", "ids") if isinstance(model, Seq2SeqModel) else ("ids",)
    return [Rng(0).child(name).integers(0, model.config.vocabulary, shape) for name in names]
