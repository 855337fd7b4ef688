"""What `minifm sample` asks of a decoder, which makes pictures of CLIP's embeddings: those that a
prior imagines for prompts, and those of pictures (Ramesh et al. 2022, section 3).

    --prior RUN --prompt TEXT       the two stages of DALL·E 2: text → embedding → picture
    --like FILE                     variations: other pictures of the same embedding
    --like FILE --like FILE         from the one to the other, along the great circle
"""

import numpy as np

from minifm.cli.arguments import add_fields
from minifm.diffusion.guidance import slerp
from minifm.errors import ConfigError
from minifm.generation.clip import directions
from minifm.generation.prior import PriorPipeline, PriorSampleConfig


def add_flags(parser):
    """The flags of what a decoder is asked for."""
    group = parser.add_argument_group("of a model that has learnt embeddings of pictures")
    group.add_argument("--prior", metavar="MODEL",
                       help="a run of pretrain --arch prior, that makes embeddings of --prompt")
    group.add_argument("--like", metavar="FILE", action="append",
                       help="one picture (or .npy), of whose embedding others are made; given "
                            "twice, what is between the two")
    add_fields(parser, PriorSampleConfig, "from prompts to embeddings, by --prior")


def check_flags(args, embedder):
    """Raise ConfigError for flags that are not for a model with this Embedder (None: which has
    learnt no embeddings), or do not go together."""
    given = [name for name in ("prior", "like") if getattr(args, name)]
    if embedder is None and given:
        raise ConfigError(f"{given[0]}: the model has learnt no embeddings of pictures; leave it "
                          "out")
    if embedder is None or not args.prior:
        for name in vars(PriorSampleConfig()):
            if hasattr(args, name):
                raise ConfigError(f"{name}: it is of --prior, which is missing")
    if embedder is None:
        return
    if args.like and (args.prior or args.prompt):
        raise ConfigError("like: it is in place of --prior and --prompt; choose")
    if args.prior and not (args.prompt or args.check):
        raise ConfigError("prior: it makes embeddings of --prompt, which is missing")
    if args.prompt and not args.prior:
        raise ConfigError("prompt: the model makes pictures of embeddings, which a prior makes of "
                          "prompts: give one by --prior, or a picture by --like")
    if args.check and not args.prior:
        raise ConfigError("check: it asks for what captions say, by a prior: give one by --prior")
    if args.like and not 1 <= len(args.like) <= min(2, args.count):
        raise ConfigError(f"like: expected one picture, or two and a count of 2 at least, got "
                          f"{len(args.like)} and {args.count}")


def imagined(prior, embedder, prompts, config, seed, batch):
    """[embedding of a picture, a tuple, for each prompt; None for None] by the prior in the
    directory `prior`. Raises ConfigError for one that has learnt by another CLIP."""
    pipeline = PriorPipeline.load(prior)
    if pipeline.recipe.embedder.sha256 != embedder.sha256:
        raise ConfigError(f"prior: {prior} has learnt by another CLIP than the model")
    made = pipeline.sample(prompts, config, seed=seed, batch=batch)
    return [None if prompt is None else tuple(one)
            for prompt, one in zip(prompts, made.tolist())]


def alike(pictures, embedder, count):
    """[embedding, a tuple] of `count` pictures: like the one of `pictures` [1, C, S, S], or from
    the first to the second [2, C, S, S]."""
    found = directions(embedder.pictures(pictures))
    parts = np.linspace(0, 1, count) if len(found) == 2 else np.zeros(count)
    return [tuple(slerp(found[:1], found[-1:], float(part)).numpy()[0].tolist())
            for part in parts]


