"""From texts to embeddings of pictures, with a prior: the first stage of DALL·E 2 (Ramesh et al.
2022, section 2.2).

    prior = PriorPipeline.load("runs/prior/last")
    e = prior.sample(["bold letter A"] * 4, PriorSampleConfig(prior_guidance=2))    # float32 [4, E]

A prior's directory has the network, its scheduler, and the CLIP that it has learnt by (clip.py).
"""

from dataclasses import dataclass

import numpy as np

from minifm.config import check, setting
from minifm.diffusion.guidance import classifier_free
from minifm.diffusion.scheduler import Scheduler
from minifm.errors import ConfigError
from minifm.generation.clip import FOLDER, Embedder, Texts, directions
from minifm.generation.diffusion import in_pieces
from minifm.hub import load_model, load_scheduler, save_scheduler
from minifm.models import Prior
from minifm.rng import Rng
from minifm.tensor import no_grad


@dataclass(frozen=True)
class PriorSampleConfig:
    """How a text becomes the embedding of a picture."""

    prior_steps: int = setting(25, "noise levels that the prior visits", least=1)
    prior_guidance: float = setting(1.0, "classifier-free guidance of the prior", least=0)
    candidates: int = setting(2, "embeddings that the prior makes of each text, of which the one "
                                 "nearest to the text is taken", least=1)

    __post_init__ = check


@dataclass(frozen=True)
class PriorRecipe:
    """What is saved with a prior: how it is sampled, and the CLIP that it has learnt by."""

    scheduler: Scheduler
    embedder: Embedder

    def save(self, directory):
        save_scheduler(self.scheduler, directory)
        self.embedder.save(directory)


@dataclass(frozen=True)
class PriorPipeline:
    """A prior and its PriorRecipe."""

    network: Prior
    recipe: PriorRecipe
    place: str = "the prior"        # as messages call it

    @classmethod
    def load(cls, directory):
        """The prior in a directory. Raises FormatError, and ConfigError for another model, or one
        without its CLIP."""
        network = load_model(directory)
        if not isinstance(network, Prior):
            raise ConfigError(f"{directory}: expected a prior, got a {type(network).__name__}")
        embedder = Embedder.beside(directory)
        if embedder is None:
            raise ConfigError(f"{directory}: the CLIP that the prior has learnt by is not there "
                              f"(no folder {FOLDER})")
        return cls(network, PriorRecipe(load_scheduler(directory), embedder), str(directory))

    def sample(self, prompts, config=PriorSampleConfig(), *, seed=0, batch=64):
        """float32 [B, E], `directions` of pictures that B prompts might be of; None is the empty
        prompt. The same for any `batch`."""
        told = self.recipe.embedder.texts([prompt or "" for prompt in prompts])
        made = np.stack([self._drawn(told, config, Rng(seed).child("prior", i), batch)
                         for i in range(config.candidates)])            # [candidates, B, E]
        texts = told["summary"] / np.linalg.norm(told["summary"], axis=-1, keepdims=True)
        nearest = (made * texts).sum(-1).argmax(0)
        return made[nearest, np.arange(len(prompts))]

    def _drawn(self, told, config, rng, batch):
        scheduler, B = self.recipe.scheduler, len(told["summary"])
        levels = scheduler.levels(config.prior_steps)
        nothing = Texts(self.recipe.embedder).told([None])
        without = {key: np.repeat(value, B, 0) for key, value in nothing.items()}
        model = classifier_free(in_pieces(self.network, batch), config.prior_guidance,
                                condition=told, without=without)
        with no_grad():
            x = scheduler.start(levels, (B, self.network.config.embedding), rng)
            made = scheduler.sample(model, x, levels, rng=rng).numpy()
        return directions(self.network.restore(made))
