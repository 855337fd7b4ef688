"""Making examples with a diffusion model: its directory, what to make, and the way from noise.

    pipeline = Pipeline.load("runs/digits/last")
    x = pipeline.sample(["3", "7"], SampleConfig(steps=30, guidance=2))     # float32 [2, 1, 8, 8]
    pipeline.recipe.kind.save("two.png", x)

A model's directory opens in other libraries: config.json and diffusion_pytorch_model.safetensors
are the network, scheduler_config.json is how it is sampled; where it works with an encoder of
captions, each part has a folder (hub/pipelines.py). What these cannot say is in examples.json: what
the arrays are, and the names of their classes.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from minifm import ops
from minifm.atomic import write_json
from minifm.config import check, setting
from minifm.diffusion.guidance import KnownPart, classifier_free, image_to_image
from minifm.diffusion.objectives import Denoiser
from minifm.diffusion.process import noised, normal_like
from minifm.diffusion.samplers import SAMPLERS
from minifm.diffusion.scheduler import FLOW, Scheduler
from minifm.errors import ConfigError, FormatError
from minifm.generation.clip import Embedder, Shown
from minifm.generation.condition import condition_of, encoded
from minifm.hub import load_model, load_scheduler, save_scheduler
from minifm.hub.pipelines import INDEX, parts_in
from minifm.media import KINDS, PICTURE, Kind
from minifm.models import Composite, DiT, Prior, UNet, network_of
from minifm.rng import Rng
from minifm.tensor import Tensor, no_grad

FILE = "examples.json"
NETWORK_FOLDERS = ("", "unet", "transformer")       # where libraries put it


# -- what a network makes --------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """What a network makes, and how.

    scheduler   the Scheduler that it was trained by
    kind        a media.Kind; shape (C, *space) of an example
    classes     names of the classes that it can be asked for, or ()
    rate        of sounds, samples a second
    classless   whether it has learnt to do without class or caption, too, as guidance needs
    embedder    an Embedder, whose embeddings of pictures it makes pictures of (clip.py), or None
    """

    scheduler: Scheduler
    kind: Kind
    shape: tuple
    classes: tuple = ()
    rate: int | None = None
    classless: bool = True
    embedder: Embedder | None = None

    def save(self, directory):
        """Write scheduler_config.json and examples.json beside the network, and the CLIP that it
        has learnt by, if it has, into a folder."""
        save_scheduler(self.scheduler, directory)
        write_json({"kind": self.kind.name, "shape": list(self.shape),
                    "classes": list(self.classes), "rate": self.rate,
                    "classless": self.classless}, Path(directory) / FILE)
        if self.embedder is not None:
            self.embedder.save(directory)

    def condition(self, network, place="the model"):
        """The Condition that says what `network`, called `place`, can be asked for."""
        if self.embedder is not None:
            return Shown(self.embedder)
        return condition_of(network, classes=self.classes, place=place)

    @classmethod
    def load(cls, directory, network, sampler=None):
        """The recipe in a directory; where it has no examples.json, pictures, and classes called by
        their numbers. A scheduler whose own sampler is not here has `sampler`. Raises FormatError
        for a damaged file, and one that `network` does not fit.
        """
        scheduler, file = load_scheduler(directory, instead=sampler), Path(directory) / FILE
        C, space, classes = made_by(network)
        if not file.exists():
            return cls(scheduler, PICTURE, (C, *space), tuple(map(str, range(classes))))
        try:
            said = json.loads(file.read_text("utf-8"))
            found = cls(scheduler, KINDS[said["kind"]], tuple(map(int, said["shape"])),
                        tuple(map(str, said["classes"])), said["rate"], bool(said["classless"]),
                        Embedder.beside(directory))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
            raise FormatError(file, None, f"cannot be read: {problem!r:.80}") from None
        if not fits(found.shape, network) or len(found.classes) != classes:
            raise FormatError(file, None, f"examples of {list(found.shape)} in "
                              f"{len(found.classes)} classes; the network makes "
                              f"{[C, *space]} in {classes}")
        return found


def fits(shape, model):
    """Whether a network, or a Composite, can make examples of this shape (C, *space)."""
    (C, space, _), config = made_by(model), network_of(model).config
    if config.model is UNet:                # whose configuration says one of the sides, or none
        return (len(shape), shape[0]) == (3, C) and (
            config.size is None or shape[1] == space[0])
    return tuple(shape) == (C, *space)


def made_by(model):
    """(channels, sizes of space, classes) of what a network, or a Composite, makes."""
    config, pictures = network_of(model).config, getattr(model.config, "autoencoder", None)
    if config.model is UNet:
        side = config.size or 32
        C, space, classes = config.inputs, (side, side), max((config.classes or 1) - 1, 0)
    else:
        C, space, classes = config.inputs, config.size, config.classes
    if pictures is not None:
        C, space = pictures.outputs, tuple(n * pictures.stride for n in space)
    return C, space, classes


# -- making them -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SampleConfig:
    """How noise becomes examples."""

    steps: int = setting(30, "noise levels to visit, from noise to data", least=1)
    sampler: str | None = setting(
        None, f"the way between them: {', '.join(SAMPLERS)} (default: the one that the model's "
        "scheduler_config.json names)", choices=tuple(SAMPLERS))
    eta: float = setting(0.0, "ddim: the part of the noise that each step draws anew; at 1 it is "
                         "ddpm", least=0, most=1)
    guidance: float = setting(
        1.0, "classifier-free guidance: how many times as far towards class or prompt; 1 is these "
        "alone, 0 none", least=0)
    rescale: float = setting(0.0, "of guidance: how far its contrast is brought back to that of 1",
                             least=0, most=1)
    strength: float = setting(
        0.6, "with a picture to start from: the part of the steps that is made; at 1 little of it "
        "is left", above=0, most=1)
    seed: int = setting(0, "the same seed makes the same examples", least=0)
    batch: int = setting(64, "examples that the network is asked for together; less takes less "
                         "memory", least=1)

    __post_init__ = check


@dataclass(frozen=True)
class Known:
    """What is known before: arrays of -1 … 1 that broadcast to the examples.

    start   what to start from (image to image), or None
    part    what is to stay, where `mask` is 1; what is 0 is filled (inpainting), or None
    """

    start: np.ndarray | None = None
    part: np.ndarray | None = None
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Pipeline:
    """A network, or a Composite of one and what it works with, and its Recipe."""

    network: object
    recipe: Recipe
    place: str = field(default="the model")     # as messages call it

    @classmethod
    def load(cls, directory, sampler=None):
        """The diffusion model in a directory: a checkpoint's, or one that other libraries wrote; a
        `sampler` is for those that name one which is not here. Raises FormatError, and ConfigError
        for a model of another sort."""
        directory = Path(directory)
        network = load_model(directory if (directory / INDEX).exists()
                             else network_folder(directory))
        if not isinstance(network, (UNet, DiT, Composite)):
            makes = ", which makes embeddings: a decoder takes it as --prior" \
                if isinstance(network, Prior) else ""
            raise ConfigError(f"{directory}: expected a network of a diffusion model, got a "
                              f"{type(network).__name__}{makes}")
        made = cls(network, Recipe.load(directory, network, sampler), str(directory))
        made.condition                          # or raise for one that cannot be told
        return made

    @property
    def condition(self):
        """The Condition that says what can be asked for."""
        return self.recipe.condition(self.network, self.place)

    def scheduler(self, config):
        """The recipe's Scheduler with the sampler of a SampleConfig. Raises ConfigError for one
        that does not go with the network."""
        own = self.recipe.scheduler
        if config.sampler in (None, own.sampler):
            return own
        if FLOW in (own.noise, "flow" if config.sampler == "flow_euler" else None):
            raise ConfigError(f"sampler: {self.place} has learnt {own.noise} noise, and is sampled "
                              f"by {own.sampler}, not by {config.sampler}")
        return replace(own, sampler=config.sampler)

    def sample(self, asked, config=SampleConfig(), *, known=Known(), watch=None):
        """float32 [B, C, *space] in about -1 … 1, one example for each of `asked`: names of
        classes, or captions; None for neither. The same for any `batch`.

        watch   called with (-1, the level begun at, x there, None), then after each step with (its
                number, the level reached, x there, the Estimate that led there)

        Raises ConfigError for a class, sampler or guidance that the model does not have.
        """
        scheduler, rng = self.scheduler(config), Rng(config.seed).child("sample")
        levels, space = scheduler.levels(config.steps), self.space
        inside = space.known(known, config.batch)
        shape = (len(asked), *space.shape)
        if known.start is None:
            x = scheduler.start(levels, shape, rng)
        else:
            start = np.broadcast_to(np.asarray(inside.start, np.float32), shape)
            x, levels = image_to_image(start, levels, config.strength, rng)
        options = {"eta": config.eta} if scheduler.sampler == "ddim" else {}
        if watch is not None:
            watch(-1, levels[0], Tensor(x), None)
        with no_grad():
            made = scheduler.sample(self.model(asked, config), x, levels, rng=rng, watch=watch,
                                    around=lambda denoiser: around(denoiser, config, inside, shape),
                                    **options)
        return space.with_known(space.outward(made.numpy(), config.batch), known)

    @property
    def space(self):
        """Where the network works: on examples themselves, or on latents of an autoencoder."""
        autoencoder = getattr(self.network, "autoencoder", None)
        if autoencoder is None:
            return Space(self.recipe.shape)
        C, *sizes = self.recipe.shape
        config = autoencoder.config
        return Latents((config.latents, *(n // config.stride for n in sizes)), autoencoder)

    def model(self, asked, config):
        """The function (x, t) -> prediction of what is asked, guided."""
        whole, condition = in_pieces(self.network, config.batch), self.condition
        told = encoded(self.network, condition.told(asked), config.batch)
        if not told:
            if config.guidance != 1:
                raise ConfigError(f"guidance: {condition.said(self.place)}, so that there is "
                                  "nothing to be guided to; leave it out")
            return whole
        if config.guidance != 1 or not all(asked):
            self._require_classless(condition)
        nothing = encoded(self.network, condition.told([None] * len(asked)), config.batch)
        return classifier_free(whole, config.guidance, condition=told, without=nothing,
                               rescale=config.rescale)

    def _require_classless(self, condition):
        if not self.recipe.classless:
            what = {"classes": "the class", "prompt": "a caption"}[condition.flag]
            raise ConfigError(f"guidance: {self.place} has never learnt to do without {what} "
                              f"(it was trained with drop 0); only 1 is possible, with "
                              f"{condition.flag}")

    def strip(self, x0, asked, config=SampleConfig(), *, frames=8):
        """[B, 2 · frames - 1, C, *space]: x0 [B, C, *space] as more and more noise covers it, and
        then, from all of that noise, what the network makes of it."""
        scheduler, rng = self.scheduler(config), Rng(config.seed).child("strip")
        levels, space = scheduler.levels(config.steps), self.space
        x0 = space.inward(x0, config.batch)
        noise = normal_like(Tensor(x0), rng.child("noise"))
        up = [levels[::-1][round(i)] for i in np.linspace(0, config.steps, frames)]
        covered = [noised(x0, noise, level).numpy() for level in up]
        states = [covered[-1]]
        with no_grad():
            scheduler.sample(self.model(asked, config), Tensor(covered[-1]), levels, rng=rng,
                             around=lambda denoiser: around(denoiser, config, Known(), x0.shape),
                             watch=lambda i, level, x, found: states.append(x.numpy()))
        down = [states[round(i)] for i in np.linspace(0, config.steps, frames)[1:]]
        return np.stack([space.outward(x, config.batch) for x in covered + down], 1)


class Space:
    """Where a network works: here, where the examples are.

    shape   (C, *space) of what it is given
    """

    def __init__(self, shape):
        self.shape = tuple(shape)

    def inward(self, x, at_once):
        """Examples float32 [B, C, *space] as the network has them, `at_once` of them together."""
        return x

    def outward(self, x, at_once):
        """The way back."""
        return x

    def known(self, known, at_once):
        """What is Known of the examples, as the network has it."""
        return known

    def with_known(self, made, known):
        """Examples that were made, with what was known of them as it was."""
        return made


class Latents(Space):
    """The latents of an autoencoder's pictures, the likeliest of each (Rombach et al. 2022)."""

    def __init__(self, shape, autoencoder):
        super().__init__(shape)
        self.autoencoder = autoencoder

    def inward(self, x, at_once):
        return in_turn(self.autoencoder.to_latents, x, at_once)

    def outward(self, x, at_once):
        return in_turn(self.autoencoder.to_pictures, x, at_once)

    def known(self, known, at_once):
        """Latents of what is known; those stay that no unknown pixel lies on."""
        start, part = (None if x is None else self.inward(np.asarray(x, np.float32), at_once)
                       for x in (known.start, known.part))
        if known.mask is None:
            return Known(start, part)
        mask, s = np.asarray(known.mask), self.autoencoder.config.stride        # [1, 1, H, W]
        blocks = mask.reshape(*mask.shape[:2], mask.shape[2] // s, s, mask.shape[3] // s, s)
        return Known(start, part, blocks.min((3, 5)))

    def with_known(self, made, known):
        """An autoencoder changes a little of all: what is known is put back."""
        return made if known.part is None else np.where(known.mask == 1, known.part, made)


def in_turn(function, x, most):
    """function(x) of a NumPy array [B, …], for `most` of it at a time, without gradients."""
    with no_grad():
        return np.concatenate([function(Tensor(x[start : start + most])).numpy()
                               for start in range(0, len(x), most)])


def network_folder(directory):
    """Where the network lies in the directory of a diffusion model. Raises FormatError."""
    directory = Path(directory)
    if (directory / INDEX).exists():
        return parts_in(directory)["network"]
    return next((directory / name for name in NETWORK_FOLDERS
                 if (directory / name / "config.json").exists()), directory)


def around(denoiser, config, known, shape):
    """The Denoiser of a scheduler as `sample` needs it.

    Guided, the estimate of the data is often beyond what data can be, and clipped; then the noise
    must follow from it: if it stays what was predicted, as other libraries have it in ddim, x
    leaves its level a little in each step, and ends as something else.
    """
    if config.guidance not in (0, 1):
        denoiser = Denoiser(denoiser.model, denoiser.objective, correct=denoiser.correct)
    if known.part is None:
        return denoiser
    part = np.broadcast_to(np.asarray(known.part, np.float32), shape)
    return KnownPart(denoiser, part, known.mask)


def in_pieces(network, most):
    """The function (x, t, what it is told) -> prediction that asks the network for `most` at a
    time."""
    def whole(x, t, **told):
        found = []
        for start in range(0, x.shape[0], most):
            part = slice(start, start + most)
            found.append(network(x[part], t, **{key: value[part] for key, value in told.items()}))
        return found[0] if len(found) == 1 else ops.concatenate(found, 0)
    return whole
