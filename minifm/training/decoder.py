"""Of a diffusion model that learns to make pictures of CLIP's embeddings of them, the decoder of
DALL·E 2 (Ramesh et al. 2022, section 2.1): which CLIP, and what it makes of each example.

As in the paper, the network adds a projection of the embedding to that of the time, and looks at
the embedding as at a text. The paper makes four tokens of it for that; here it is one, as it is, so
that files are those of other libraries.
"""

from dataclasses import dataclass

import numpy as np

from minifm.config import check, setting
from minifm.errors import ConfigError
from minifm.generation.clip import Embedder
from minifm.generation.condition import Table
from minifm.hub import resolve
from minifm.training.captioned import READERS


@dataclass(frozen=True)
class DecoderConfig:
    """What of pictures is learnt, in place of classes and captions."""

    clip_model: str | None = setting(
        None, "learn to make pictures of the embeddings that this CLIP makes of them: a run, a "
        "directory or a name on the hub (default: classes or captions are learnt)")

    __post_init__ = check

    def embedder(self, there, arch, captions):
        """The Embedder of the CLIP that is asked for, or that a model which is `there` already, a
        directory or None, has learnt by; None where there is no such. Raises ConfigError where they
        are not the same, the architecture does not look at anything, or a CaptionConfig asks for
        captions."""
        own = None if there is None else Embedder.beside(there)
        if self.clip_model is None:
            return own
        if captions.captions or captions.text_encoder is not None:
            raise ConfigError("clip_model: either embeddings of pictures are learnt, or captions")
        if arch not in READERS:
            raise ConfigError(f"clip_model: a {arch} does not look at embeddings; "
                              f"{', '.join(READERS)} does")
        found = Embedder.load(self.clip_model)
        if there is not None and (own is None or own.sha256 != found.sha256):
            raise ConfigError(f"clip_model: {there} has not learnt by {self.clip_model}")
        return found


def there_already(newest, initial):
    """The directory of the model that a run goes on from, or None."""
    return newest if newest is not None or initial is None else resolve(initial)


def embeddings_of(examples, condition):
    """The Table of what a decoder with this Condition, a Shown, is told of the Examples: of each
    what the CLIP makes of it."""
    asked = condition.asked(examples.take(np.arange(examples.count)))
    return Table(condition.told([*asked, None]), np.arange(examples.count))
