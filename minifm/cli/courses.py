"""What `minifm pretrain` must know of each kind of data that models learn from: its flags, how a
run is made ready, and what is said of it. `ARCHITECTURES` says which of them a model takes.

A course is made, and what it trains with imported, as late as the verb needs it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields

from minifm.cli import program, summaries
from minifm.cli.arguments import build
from minifm.models import ARCHITECTURES


def nothing(trainer):
    return ""


@dataclass(frozen=True)
class Course:
    """source      what tells the settings that are not chosen, as messages call it
    configs     {dataclass of settings: (the argument of make_ready, the title of its flags)}
    training    the TrainConfig, with the defaults that suit
    not_chosen  settings of a model that follow from the data
    make_ready  the `prepare` of what trains it
    summary     of what that returns, a line a part
    next        next(trainer) is what to try with the model, or nothing
    meanings    {score of an evaluation: what is printed behind it, {batch} for that of the run};
                default: its name
    """

    source: str
    configs: dict
    training: type
    not_chosen: set
    make_ready: Callable
    summary: Callable
    next: Callable = nothing
    meanings: dict = field(default_factory=dict)

    def shape_settings(self, arch):
        """The names of a model's settings that are the user's to choose: not those that say which
        architecture it is, nor what only the data know."""
        kind = ARCHITECTURES[arch]
        return names_of(kind.config) - kind.fixed.keys() - self.not_chosen

    @property
    def own_settings(self):
        """The names of the settings beside a model's, and those of all training."""
        return set().union(*map(names_of, self.configs))

    def prepare(self, directory, said, shape, **options):
        """The run in `directory`, of the settings {name: value} that were said."""
        built = {argument: build(config, said) for config, (argument, _) in self.configs.items()}
        return self.make_ready(directory, config=build(self.training, said), shape=shape, **built,
                               **options)

    def meaning(self, score, config):
        """What is printed behind a score of an evaluation, under this TrainConfig."""
        return self.meanings.get(score, score.replace("_", " ")).format(batch=config.batch)


def text():
    """Text in, a language model out."""
    from minifm.training.config import TrainConfig
    from minifm.training.objectives import LearningConfig
    from minifm.training.pretrain import NOT_CHOSEN, TextConfig, prepare
    return Course("the tokenizer",
                  {TextConfig: ("text", "text"),
                   LearningConfig: ("learning", "learning: what is guessed")},
                  TrainConfig, NOT_CHOSEN, prepare, summaries.of_text, writing)


def examples():
    """Examples in (pictures, sounds, films, solids), a diffusion model out."""
    from minifm.training.captioned import CaptionConfig
    from minifm.training.decoder import DecoderConfig
    from minifm.training.denoising import (
        NOT_CHOSEN,
        DenoisingTrainConfig,
        ExamplesConfig,
        NoiseConfig,
        prepare,
    )
    from minifm.training.judging import JudgeConfig
    from minifm.training.latents import LatentConfig
    return Course("the examples",
                  {ExamplesConfig: ("wanted", "examples"),
                   NoiseConfig: ("noise", "noise: what is learnt of it"),
                   CaptionConfig: ("captions", "captions: what reads them"),
                   DecoderConfig: ("decoding", "embeddings of pictures, in place of captions"),
                   LatentConfig: ("latents", "latents: where the network works"),
                   JudgeConfig: ("judging", "judging what is made")},
                  DenoisingTrainConfig, NOT_CHOSEN, prepare, summaries.of_examples, sampling)


def pictures():
    """Pictures in, an autoencoder out."""
    from minifm.training.autoencoding import Autoencoding, AutoencodingConfig
    from minifm.training.denoising import DenoisingTrainConfig, ExamplesConfig
    from minifm.training.pictures import prepare
    return Course("the pictures",
                  {ExamplesConfig: ("wanted", "pictures"),
                   AutoencodingConfig: ("learning", "there and back")},
                  DenoisingTrainConfig, Autoencoding.not_chosen, prepare, summaries.of_pictures,
                  what_came_back)


def deceiving():
    """Pictures in, a generative adversarial network out."""
    from minifm.training.adversarial import Adversarial, AdversarialConfig, AdversarialTrainConfig
    from minifm.training.denoising import ExamplesConfig
    from minifm.training.judging import JudgeConfig
    from minifm.training.pictures import prepare
    return Course("the pictures",
                  {ExamplesConfig: ("wanted", "pictures"),
                   AdversarialConfig: ("learning", "the two sides"),
                   JudgeConfig: ("judging", "judging what is made")},
                  AdversarialTrainConfig, Adversarial.not_chosen, prepare, summaries.of_pictures,
                  what_was_made)


def captions():
    """Pictures with captions in, a CLIP out."""
    from minifm.training.contrastive import CaptionsConfig, ContrastiveTrainConfig, prepare
    return Course("the pictures and captions",
                  {CaptionsConfig: ("wanted", "pictures and captions")},
                  ContrastiveTrainConfig, set(), prepare, summaries.of_captions, using_clip,
                  RETRIEVAL)


def embeddings():
    """Pictures with captions and a CLIP in, a prior out."""
    from minifm.training.contrastive import CaptionedConfig
    from minifm.training.priors import NOT_CHOSEN, ClipConfig, PriorTrainConfig, prepare
    return Course("the CLIP",
                  {CaptionedConfig: ("wanted", "pictures and captions"),
                   ClipConfig: ("learning", "the CLIP, whose embeddings are learnt")},
                  PriorTrainConfig, NOT_CHOSEN, prepare, summaries.of_embeddings, using_prior)


RETRIEVAL = {
    "text_of_picture": "of the pictures find their text among those of at most {batch} pairs",
    "picture_of_text": "of the texts find their picture among those of at most {batch} pairs",
    "zero_shot": "of the pictures find the prompts of their class (zero shot)"}
COURSES = {"text": text, "examples": examples, "pictures": pictures, "deceiving": deceiving,
           "captions": captions, "embeddings": embeddings}


def course_of(arch):
    """The Course of an architecture."""
    return COURSES[ARCHITECTURES[arch].learns]()


def names_of(config):
    """The names of a dataclass's fields."""
    return {field.name for field in fields(config)}


# -- what to try with the model --------------------------------------------------------------------


def writing(trainer):
    from minifm.models.causal import CausalModel
    writes = isinstance(trainer.model, CausalModel) or trainer.model.absorbing
    return f"; try: {program()} generate {trainer.directory}/last \"Once\"" if writes else ""


def sampling(trainer):
    kind, directory = trainer.companion.kind, trainer.directory
    captioned = getattr(trainer.model, "tokenizer", None) is not None
    prompt = f' --prompt "{trainer.sketch.asked[0]}"' if captioned else ""
    if trainer.companion.embedder is not None:
        prompt = " --prior RUN --prompt TEXT"
    return f"; try: {program()} sample {directory}/last{prompt} --out a{kind.extension}"


def what_came_back(trainer):
    return f"; held-out pictures and what came back of them: {trainer.directory}/samples"


def what_was_made(trainer):
    return f"; what it has made on the way: {trainer.directory}/samples"


def using_clip(trainer):
    place = f"{trainer.directory}/last"
    return f"; with it learn: pretrain --arch unet --text-encoder {place}, or --arch prior and " \
        f"unet --clip-model {place}"


def using_prior(trainer):
    return f"; with what --arch unet --clip-model has learnt, try: {program()} sample RUN " \
        f"--prior {trainer.directory}/last --prompt TEXT --out a.png"
