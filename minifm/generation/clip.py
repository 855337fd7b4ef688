"""CLIP as the two stages of DALL·E 2 use it (Ramesh et al. 2022): what it makes of texts and of
pictures, once for all, and the folder in which it lies beside the models that have learnt by it.

    embedder = Embedder.load("runs/clip")
    embedder.pictures(x)                    # float32 [N, E]
    embedder.texts(["bold letter A"])       # what a prior is told of each

Of a picture's embedding only the direction means anything: CLIP compares cosines. So what models
learn here are `directions`, vectors of length √E, of which each number is of about size 1.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from minifm.errors import ConfigError, plural
from minifm.generation.condition import Condition
from minifm.hub import load_model, resolve, save_model
from minifm.hub.pictures import PictureScale
from minifm.models import CLIP
from minifm.models.composite import memory_of
from minifm.tensor import Tensor, no_grad
from minifm.text import Tokenizer
from minifm.text.captions import caption_rows

AT_ONCE = 256           # rows that a tower is asked for
FOLDER = "clip"         # in the directory of a model that has learnt by it


@dataclass(frozen=True, eq=False)
class Embedder:
    """A CLIP, and all that it takes to show it texts and pictures."""

    model: CLIP
    tokenizer: Tokenizer
    scale: PictureScale
    place: str = "the CLIP"         # as messages call it

    @classmethod
    def load(cls, name):
        """Of a run, a directory, or a model on the hub; raises ConfigError for another model."""
        place = resolve(name)
        model = load_model(place)
        if not isinstance(model, CLIP):
            raise ConfigError(f"{name}: expected a CLIP, got a {type(model).__name__}")
        return cls(model, Tokenizer.load(place),
                   PictureScale.load(place, model.config.image.channels), str(name))

    @classmethod
    def beside(cls, directory):
        """That in the folder of a model's directory, or None."""
        folder = Path(directory) / FOLDER
        return cls.load(folder) if folder.is_dir() else None

    def save(self, directory):
        """Write it into its folder of a model's directory."""
        folder = Path(directory) / FOLDER
        folder.mkdir(exist_ok=True)
        save_model(self.model, folder, self.tokenizer)
        self.scale.save(folder, self.model.config.image.size)

    @property
    def width(self):
        """Numbers of an embedding."""
        return self.model.config.text.joint

    @cached_property
    def sha256(self):
        """What tells this CLIP from any other: models that have learnt by it go with no other."""
        found = hashlib.sha256(self.tokenizer.sha256.encode())
        for name, parameter in self.model.parameters().items():
            found.update(name.encode())
            found.update(np.ascontiguousarray(parameter.numpy()))
        return found.hexdigest()

    def pictures(self, x):
        """float32 [N, E] of pictures [N, C, S, S] in -1 … 1. Raises ConfigError for pictures that
        the CLIP does not look at."""
        image = self.model.config.image
        if x.shape[1:] != (image.channels, image.size, image.size):
            C, *sides = x.shape[1:]
            own = f"{plural(image.channels, 'channel')} and {image.size} × {image.size} pixels"
            raise ConfigError(f"{self.place} looks at pictures of {own}, not of "
                              f"{plural(C, 'channel')} and {' × '.join(map(str, sides))}")
        with no_grad():
            return np.concatenate([
                self.model.image.embed(Tensor(self.scale(x[start : start + AT_ONCE]))).numpy()
                for start in range(0, len(x), AT_ONCE)])

    def texts(self, captions, say=None):
        """{"memory": float32 [N, T, W], "memory_mask": bool [N, T], "summary": float32 [N, E]}: of
        each caption its tokens, padded to the CLIP's context, where these are real, and its
        embedding; `say` is called with a line of text where captions are cut."""
        context, tower = self.model.config.text.context, self.model.text
        ids, real = caption_rows(self.tokenizer, captions, context, say=say)
        with no_grad():
            parts = [(memory_of(tower, part, None)[0].numpy(), tower.embed(part).numpy())
                     for part in (ids[start : start + AT_ONCE]
                                  for start in range(0, len(ids), AT_ONCE))]
        memory, summary = (np.concatenate(found) for found in zip(*parts))
        return {"memory": memory, "memory_mask": real, "summary": summary}


def directions(embeddings):
    """float32 [N, E], each of length √E."""
    length = np.sqrt((embeddings * embeddings).sum(-1, keepdims=True) / embeddings.shape[-1])
    return (embeddings / length).astype(np.float32)


# -- what the models of the two stages are told (condition.py) -------------------------------------


@dataclass(frozen=True)
class Texts(Condition):
    """What a caption says to a prior; None is the empty caption."""

    embedder: Embedder
    flag, keywords = "prompt", ("memory", "memory_mask", "summary")

    def told(self, asked, say=None):
        return self.embedder.texts([name or "" for name in asked], say)

    def said(self, model):
        return f"{model} makes embeddings of texts"

    @property
    def description(self):
        return {"none": "", "clip": self.embedder.sha256}


@dataclass(frozen=True)
class Shown(Condition):
    """A picture's embedding, a tuple of E numbers, to a decoder; None, the embedding 0, stands for
    none. The network adds it to the time's, and looks at it as at a text of one token."""

    embedder: Embedder
    flag, keywords = "prompt", ("memory", "vector")

    def asked(self, pictures):
        """What one asks for to have pictures like these [N, C, S, S]."""
        return [tuple(found) for found in self.embedder.pictures(pictures).tolist()]

    def told(self, asked, say=None):
        E = self.embedder.width
        found = np.array([[0.0] * E if one is None else one for one in asked], np.float32)
        there = np.array([one is not None for one in asked])
        found[there] = directions(found[there])
        return {"memory": found[:, None], "vector": found}

    def said(self, model):
        return f"{model} has learnt embeddings of pictures"

    @property
    def description(self):
        return {"none": 0, "clip": self.embedder.sha256}
