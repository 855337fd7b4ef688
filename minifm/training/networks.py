"""The model of a diffusion run: a new network, as its examples ask for one, the one that a run has
so far, or one to start from; and the Recipe that goes with it."""

from dataclasses import asdict
from typing import NamedTuple

from minifm.errors import ConfigError, plural
from minifm.generation.condition import Captions
from minifm.generation.diffusion import Pipeline, Recipe
from minifm.hub import resolve
from minifm.media import Examples
from minifm.models import ARCHITECTURES, Composite, DiT, UNet, architecture_of, network_of
from minifm.nn import freeze
from minifm.rng import Rng
from minifm.training import memory
from minifm.training.captioned import CaptionConfig
from minifm.training.config import TrainConfig
from minifm.training.latents import LatentConfig
from minifm.training.run import model_to_resume


def recipe_of(examples, noise, captioned=False, embedder=None):
    """The Recipe of a network that learns these examples, by an Embedder's embeddings of them, by
    their captions, or else by their classes. Raises ConfigError where there is nothing to learn or
    to evaluate on."""
    for part, indices in examples.parts.items():
        if not len(indices):
            raise ConfigError(f"data: {examples.description['name']} has no {part} examples")
    labelled = noise.labels and examples.labels is not None and not captioned \
        and embedder is None
    return Recipe(noise.scheduler, examples.kind, tuple(map(int, examples.shape)),
                  tuple(examples.classes) if labelled else (), examples.description.get("rate"),
                  noise.drop > 0, embedder)


def shape_for(arch, recipe, shape=None):
    """{field: value} of the network's configuration that follow from the examples, or from the
    `shape` (C, *space) of what it learns in their place. Raises ConfigError for a UNet of what are
    no pictures."""
    (C, *space), K = shape or recipe.shape, len(recipe.classes)
    if ARCHITECTURES[arch].model is DiT:
        return {"inputs": C, "outputs": C, "size": tuple(space), "classes": K}
    if len(space) != 2:
        raise ConfigError(f"arch: a {arch} makes pictures, not {recipe.kind.name}s; dit makes them "
                          f"({', '.join(ARCHITECTURES['dit'].presets)})")
    return {"inputs": C, "outputs": C, "size": space[0], "classes": K + 1 if K else None}


class Design(NamedTuple):
    """What a model is to be."""

    examples: Examples
    recipe: Recipe
    shape: dict                     # {field: value} of the network's configuration
    arch: str
    config: TrainConfig
    captions: CaptionConfig | None  # None: it is to learn none
    latents: LatentConfig


def model_of(newest, initial, design):
    """The model of the checkpoint `newest`, or the model `initial`, if it fits the Design; or a new
    one. Its encoder is frozen where it is not to learn. Raises ConfigError."""
    if design.recipe.embedder is not None and design.latents.latent is not None:
        raise ConfigError("latent: a network that is told embeddings of pictures works on pixels; "
                          "leave it out")
    if newest is not None:
        model = model_to_resume(newest, design.arch, design.shape)
    else:
        model = _new(design) if initial is None else _started(initial, design)
    if design.config.recompute and not isinstance(network_of(model), DiT):
        raise ConfigError(f"recompute: a {type(network_of(model)).__name__} does not compute its "
                          "blocks again; leave it out")
    if design.captions is not None and not design.captions.trains(model.encoder):
        freeze(model.encoder)
    return model


def _new(design):
    """A network, or a Composite where it is to learn captions, or latents."""
    kind, rng = ARCHITECTURES[design.arch], Rng(design.config.seed).child("model")
    autoencoder, encoder, tokenizer = design.latents.autoencoder(design.examples), None, None
    inside, *sizes = design.recipe.shape
    if autoencoder is not None:
        c = autoencoder.config
        inside, sizes = c.latents, [n // c.stride for n in sizes]
    follows = shape_for(design.arch, design.recipe, (inside, *sizes))
    if design.recipe.embedder is not None:
        follows |= dict.fromkeys(("memory_width", "vector_width"), design.recipe.embedder.width)
    if design.captions is not None:
        encoder, tokenizer = design.captions.encoder(design.examples.captions, rng.child("encoder"))
        follows |= {"memory_width": encoder.config.width, "vector_width": encoder.config.width}
    whole = kind.config(**design.shape | follows)
    if kind.model is UNet and any(n % whole.stride for n in sizes):
        raise ConfigError(f"size: examples of {' × '.join(map(str, sizes))}, and a UNet "
                          f"of {len(whole.widths)} levels takes multiples of {whole.stride}; "
                          "choose --size, or fewer --widths")
    memory.require_parameters(whole.parameters, design.config)
    network = kind.model(whole, rng)
    if encoder is None and autoencoder is None:
        return network
    return Composite(network, encoder, autoencoder, tokenizer=tokenizer)


def _started(initial, design):
    """A model to start from; raises ConfigError where it has learnt otherwise."""
    recipe, shape, arch = design.recipe, design.shape, design.arch
    said = [name for config in (design.captions, design.latents) if config is not None
            for name, value in asdict(config).items() if name != "captions" and value is not None]
    for names in (said, shape):
        if names:
            raise ConfigError(f"{', '.join(names)}: the model to start from has its own; leave it "
                              "out")
    base = Pipeline.load(resolve(initial))
    model, learnt = base.network, base.recipe
    if architecture_of(model) != arch:
        raise ConfigError(f"arch: {initial} is of {architecture_of(model)}, not of {arch}")
    for what, was, now in (
            ("predicts", learnt.scheduler.objective, recipe.scheduler.objective),
            ("makes", f"{learnt.kind.name}s of {plural(learnt.shape[0], 'channel')}",
             f"{recipe.kind.name}s of {plural(recipe.shape[0], 'channel')}"),
            ("knows", _known(learnt, isinstance(base.condition, Captions)),
             _known(recipe, design.captions is not None))):
        if was != now:
            raise ConfigError(f"{initial}: the model {what} {was}, and this run is of {now}")
    return model


def _known(recipe, captioned):
    if recipe.embedder is not None:
        return "embeddings of pictures"
    return "captions" if captioned else f"{len(recipe.classes)} classes"
