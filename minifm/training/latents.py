"""Latent diffusion (Rombach et al. 2022): a network that learns, in place of pictures, the latents
of an autoencoder, which has learnt before and stays as it is.

Every picture is read once, before the first step: what a run learns from then are the likeliest
latents of each, scaled so that they have a variance of 1, as noise has.
"""

import json
from dataclasses import dataclass, replace

import numpy as np

from minifm.config import check, setting
from minifm.errors import ConfigError, plural
from minifm.generation.diffusion import in_turn
from minifm.hub import load_model, resolve
from minifm.media import PICTURE
from minifm.models import AutoencoderKL
from minifm.nn import freeze

AT_ONCE = 64            # pictures that are read together


@dataclass(frozen=True)
class LatentConfig:
    """Where the network works."""

    latent: str | None = setting(
        None, "an autoencoder of pictures (AutoencoderKL), a directory or a name on the hub, in "
        "whose latents the network works; it learns no more (default: none, it works on the "
        "examples themselves)")

    __post_init__ = check

    def autoencoder(self, examples):
        """The AutoencoderKL that is named, with the scale of its config.json or else that of these
        Examples' latents; None where none is. Raises ConfigError for one that does not fit them."""
        if self.latent is None:
            return None
        place = resolve(self.latent)
        model = load_model(place)
        if not isinstance(model, AutoencoderKL):
            raise ConfigError(f"latent: {self.latent}: expected an AutoencoderKL, got a "
                              f"{type(model).__name__}")
        require_fit(model, examples)
        if "scaling_factor" not in json.loads((place / "config.json").read_text("utf-8")):
            model.config = replace(model.config, scaling=1.0)
            found = latents_of(model, examples.take(examples.parts["training"]))
            model.config = replace(model.config, scaling=1 / float(found.std(dtype=np.float64)))
        return model


def require_fit(autoencoder, examples):
    """Raise ConfigError unless the Examples are pictures that the autoencoder reads and makes."""
    c = autoencoder.config
    if examples.kind is not PICTURE:
        raise ConfigError(f"latent: an autoencoder reads pictures, not {examples.kind.name}s")
    C, *sizes = examples.shape
    if (c.inputs, c.outputs) != (C, C) or any(n % c.stride for n in sizes):
        raise ConfigError(f"latent: the autoencoder reads pictures of "
                          f"{plural(c.inputs, 'channel')} whose sides are multiples of {c.stride}, "
                          f"the data have {plural(C, 'channel')} and "
                          f"{' × '.join(map(str, sizes))} pixels")


def latents_of(autoencoder, pictures):
    """float32 [N, Z, h, w] of pictures float32 [N, C, H, W]."""
    return in_turn(autoencoder.to_latents, pictures, AT_ONCE)


def in_latents(examples, model, say, *, flip=False):
    """The Examples as a model learns them: as they are, or, of a Composite with an autoencoder,
    which is frozen, their latents. Raises ConfigError where these do not fit, or are to be
    mirrored (`flip`)."""
    autoencoder = getattr(model, "autoencoder", None)
    if autoencoder is None:
        return examples
    require_fit(autoencoder, examples)
    if flip:
        raise ConfigError("flip: latents of a mirrored picture are no mirrored latents; leave it "
                          "out")
    say("reading the pictures' latents, once for all")
    freeze(autoencoder)
    parts = np.array_split(np.arange(examples.count), -(-examples.count // 1024))
    values = np.concatenate([latents_of(autoencoder, examples.take(part)) for part in parts])
    return replace(examples, values=values)
