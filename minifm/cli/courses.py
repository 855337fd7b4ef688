"""What `minifm pretrain` must know of each kind of data that models learn from: its flags, how a
run is made ready, and what is said of it. `ARCHITECTURES` says which of them a model takes.

A course imports what it trains with as late as the verb needs it.
"""

from dataclasses import fields

from minifm.cli import program
from minifm.cli.arguments import build
from minifm.errors import plural
from minifm.models import ARCHITECTURES
from minifm.nn import trainable


class Course:
    """configs     {dataclass of settings: title of its flags}
    training    the TrainConfig, with the defaults that suit
    not_chosen  settings of a model that follow from the data
    source      what tells them, as messages call it
    """

    def __init__(self, configs, training, not_chosen):
        self.configs, self.training, self.not_chosen = configs, training, not_chosen

    def shape_settings(self, arch):
        """The names of a model's settings that are the user's to choose: not those that say which
        architecture it is, nor what only the data know."""
        kind = ARCHITECTURES[arch]
        return names_of(kind.config) - kind.fixed.keys() - self.not_chosen

    @property
    def own_settings(self):
        """The names of the settings beside a model's, and those of all training."""
        return set().union(*map(names_of, self.configs))

    def built(self, said):
        """The dataclasses of what was said, the TrainConfig last."""
        return [build(kind, said) for kind in (*self.configs, self.training)]

    def meaning(self, score, config):
        """What is printed behind a score of an evaluation, under this TrainConfig."""
        return score.replace("_", " ")


class TextCourse(Course):
    """Text in, a language model out."""

    source = "the tokenizer"

    def __init__(self):
        from minifm.training.config import TrainConfig
        from minifm.training.objectives import LearningConfig
        from minifm.training.pretrain import NOT_CHOSEN, TextConfig
        super().__init__({TextConfig: "text", LearningConfig: "learning: what is guessed"},
                         TrainConfig, NOT_CHOSEN)

    def prepare(self, directory, said, shape, **options):
        from minifm.training.pretrain import prepare
        text, learning, config = self.built(said)
        return prepare(directory, text, shape, config, learning=learning, **options)

    def summary(self, prepared):
        return text_summary(prepared)

    def next(self, trainer):
        """What to try with the model, or nothing."""
        from minifm.models.causal import CausalModel
        writes = isinstance(trainer.model, CausalModel) or trainer.model.absorbing
        return f"; try: {program()} generate {trainer.directory}/last \"Once\"" if writes else ""


class ExamplesCourse(Course):
    """Examples in (pictures, sounds, films, solids), a diffusion model out."""

    source = "the examples"

    def __init__(self):
        from minifm.training.denoising import (
            NOT_CHOSEN,
            CaptionConfig,
            DecoderConfig,
            DenoisingTrainConfig,
            ExamplesConfig,
            LatentConfig,
            NoiseConfig,
        )
        from minifm.training.judging import JudgeConfig
        super().__init__({ExamplesConfig: "examples", NoiseConfig: "noise: what is learnt of it",
                          CaptionConfig: "captions: what reads them",
                          DecoderConfig: "embeddings of pictures, in place of captions",
                          LatentConfig: "latents: where the network works",
                          JudgeConfig: "judging what is made"},
                         DenoisingTrainConfig, NOT_CHOSEN)

    def prepare(self, directory, said, shape, **options):
        from minifm.training.denoising import prepare
        wanted, noise, captions, decoding, latents, judging, config = self.built(said)
        return prepare(directory, wanted, config, noise=noise, captions=captions,
                       decoding=decoding, latents=latents, judging=judging, shape=shape, **options)

    def summary(self, prepared):
        return examples_summary(prepared)

    def next(self, trainer):
        kind, directory = trainer.companion.kind, trainer.directory
        captioned = getattr(trainer.model, "tokenizer", None) is not None
        prompt = f' --prompt "{trainer.sketch.asked[0]}"' if captioned else ""
        if trainer.companion.embedder is not None:
            prompt = " --prior RUN --prompt TEXT"
        return f"; try: {program()} sample {directory}/last{prompt} --out a{kind.extension}"


class PicturesCourse(Course):
    """Pictures in, an autoencoder out."""

    source = "the pictures"

    def __init__(self):
        from minifm.training.autoencoding import Autoencoding, AutoencodingConfig
        from minifm.training.denoising import DenoisingTrainConfig, ExamplesConfig
        super().__init__({ExamplesConfig: "pictures", AutoencodingConfig: "there and back"},
                         DenoisingTrainConfig, Autoencoding.not_chosen)

    def prepare(self, directory, said, shape, **options):
        from minifm.training.pictures import prepare
        wanted, learning, config = self.built(said)
        return prepare(directory, wanted, config, learning=learning, shape=shape, **options)

    def summary(self, prepared):
        return pictures_summary(prepared)

    def next(self, trainer):
        return f"; held-out pictures and what came back of them: {trainer.directory}/samples"


class DeceivingCourse(Course):
    """Pictures in, a generative adversarial network out."""

    source = "the pictures"

    def __init__(self):
        from minifm.training.adversarial import (
            Adversarial,
            AdversarialConfig,
            AdversarialTrainConfig,
        )
        from minifm.training.denoising import ExamplesConfig
        from minifm.training.judging import JudgeConfig
        super().__init__({ExamplesConfig: "pictures", AdversarialConfig: "the two sides",
                          JudgeConfig: "judging what is made"}, AdversarialTrainConfig,
                         Adversarial.not_chosen)

    def prepare(self, directory, said, shape, **options):
        from minifm.training.pictures import prepare
        wanted, learning, judging, config = self.built(said)
        return prepare(directory, wanted, config, learning=learning, judging=judging, shape=shape,
                       **options)

    def summary(self, prepared):
        return pictures_summary(prepared)

    def next(self, trainer):
        return f"; what it has made on the way: {trainer.directory}/samples"


class CaptionsCourse(Course):
    """Pictures with captions in, a CLIP out."""

    source = "the pictures and captions"

    def __init__(self):
        from minifm.training.contrastive import CaptionsConfig, ContrastiveTrainConfig
        super().__init__({CaptionsConfig: "pictures and captions"}, ContrastiveTrainConfig, set())

    def prepare(self, directory, said, shape, **options):
        from minifm.training.contrastive import prepare
        wanted, config = self.built(said)
        return prepare(directory, wanted, config, shape=shape, **options)

    def summary(self, prepared):
        return pairs_summary(prepared)

    def meaning(self, score, config):
        among = f"among those of at most {config.batch} pairs"
        return {"text_of_picture": f"of the pictures find their text {among}",
                "picture_of_text": f"of the texts find their picture {among}",
                "zero_shot": "of the pictures find the prompts of their class (zero shot)"}[score]

    def next(self, trainer):
        place = f"{trainer.directory}/last"
        return (f"; with it learn: pretrain --arch unet --text-encoder {place}, or --arch prior "
                f"and unet --clip-model {place}")


class EmbeddingsCourse(Course):
    """Pictures with captions and a CLIP in, a prior out."""

    source = "the CLIP"

    def __init__(self):
        from minifm.training.contrastive import CaptionedConfig
        from minifm.training.priors import NOT_CHOSEN, ClipConfig, PriorTrainConfig
        super().__init__({CaptionedConfig: "pictures and captions",
                          ClipConfig: "the CLIP, whose embeddings are learnt"}, PriorTrainConfig,
                         NOT_CHOSEN)

    def prepare(self, directory, said, shape, **options):
        from minifm.training.priors import prepare
        wanted, learning, config = self.built(said)
        return prepare(directory, wanted, config, learning=learning, shape=shape, **options)

    def summary(self, prepared):
        return embeddings_summary(prepared)

    def next(self, trainer):
        return (f"; with what --arch unet --clip-model has learnt, try: {program()} sample RUN "
                f"--prior {trainer.directory}/last --prompt TEXT --out a.png")


COURSES = {"text": TextCourse, "examples": ExamplesCourse, "pictures": PicturesCourse,
           "deceiving": DeceivingCourse, "captions": CaptionsCourse, "embeddings": EmbeddingsCourse}


def course_of(arch):
    """The Course of an architecture."""
    return COURSES[ARCHITECTURES[arch].learns]()


def names_of(config):
    """The names of a dataclass's fields."""
    return {field.name for field in fields(config)}


# -- what is going to happen, a line a part --------------------------------------------------------


def text_summary(prepared):
    from minifm import backends
    trainer, corpus = prepared.trainer, prepared.corpus
    training, held_out = prepared.training, prepared.held_out
    shape, config, objective = trainer.model.config, trainer.config, trainer.objective
    skipped = "".join(f", {what} left out: {n:,}" for what, n in corpus.skipped.items() if n)
    words = training.count - training.documents         # without the end-of-text marks
    batch = trainer.batches.batch(0)
    flops = objective.flops(trainer.model, batch) / objective.tokens(batch)
    rounds = config.steps * config.batch * objective.window(prepared.length) / training.count
    context = f", context {shape.context}" if shape.context else ""
    after = f", resumed after step {trainer.step:,}" if trainer.step else ""
    return in_lines({
        "text": f"{corpus.description}: {plural(corpus.count, 'document')}, "
                f"{corpus.size / 1e6:.2f} MB; {held_out.documents:,} of them held out{skipped}",
        "tokens": f"{trainer.tokenizer.vocabulary:,} in the vocabulary; {training.count:,} to "
                  f"train on, {training.size / max(1, words):.2f} bytes each",
        "model": f"{type(trainer.model).__name__}, {shape.parameters:,} parameters: "
                 f"{plural(shape.layers, 'layer')}, {shape.width} wide, "
                 f"{plural(shape.heads, 'head')}{context}; {flops / 1e6:,.0f} MFLOP to train on a "
                 "token",
        "learning": f"{objective.name}: its loss is in {objective.scale} a {objective.unit}",
        "training": f"{plural(config.steps, 'step')} of {config.batch} × {prepared.length} tokens, "
                    f"{rounds:.2f} times through the text",
        "backend": backends.active().describe(),
        "run": f"{trainer.directory}{after}",
    })


def examples_summary(prepared):
    from minifm import backends
    trainer, examples, recipe = prepared.trainer, prepared.examples, prepared.recipe
    config, objective, (C, *space) = trainer.config, trainer.objective, recipe.shape
    training = len(examples.parts["training"])
    flops = objective.flops(trainer.model, trainer.batches.batch(0)) / config.batch
    classes = f" in {len(recipe.classes)} classes" if recipe.classes else ""
    classes += captions_summary(trainer.model, examples)
    if recipe.embedder is not None:
        classes += f", as {recipe.embedder.place} sees them"
    after = f", resumed after step {trainer.step:,}" if trainer.step else ""
    return in_lines({
        "examples": f"{examples.description['name']}: {plural(examples.count, recipe.kind.name)} "
                    f"of {' × '.join(map(str, space))}, {plural(C, 'channel')}{classes}; "
                    f"{len(examples.parts['held_out']):,} of them held out",
        "model": f"{model_summary(trainer.model)}; "
                 f"{flops / 1e6:,.0f} MFLOP to train on an example",
        "learning": f"{objective.name}: predicts {recipe.scheduler.objective} under "
                    f"{recipe.scheduler.noise} noise; its "
                    f"loss is the {objective.scale} of a {objective.unit}",
        "training": f"{plural(config.steps, 'step')} of {plural(config.batch, 'example')}, "
                    f"{config.steps * config.batch / training:.1f} times through them",
        "backend": backends.active().describe(),
        "run": f"{trainer.directory}{after}",
    })


def pictures_summary(prepared):
    from minifm import backends
    trainer, examples = prepared.trainer, prepared.examples
    config, objective, shape = trainer.config, trainer.objective, trainer.model.config
    C, H, W = examples.shape
    flops = objective.flops(trainer.model, trainer.batches.batch(0)) / config.batch
    rounds = config.steps * config.batch / len(examples.parts["training"])
    after = f", resumed after step {trainer.step:,}" if trainer.step else ""
    latents = f"; latents of {shape.latents} × {H // shape.stride} × {W // shape.stride} numbers " \
        f"for {C * H * W:,}" if hasattr(shape, "latents") else ""
    return in_lines({
        "pictures": f"{examples.description['name']}: {plural(examples.count, 'picture')} of "
                    f"{H} × {W}, {plural(C, 'channel')}; {len(examples.parts['held_out']):,} of "
                    "them held out",
        "model": f"{type(trainer.model).__name__}, {shape.parameters:,} parameters; "
                 f"{flops / 1e6:,.0f} MFLOP to train on a picture{latents}",
        "learning": f"{objective.name}: its loss is the {objective.scale} of a {objective.unit}",
        "training": f"{plural(config.steps, 'step')} of {plural(config.batch, 'picture')}, "
                    f"{rounds:.1f} times through them",
        "backend": backends.active().describe(),
        "run": f"{trainer.directory}{after}",
    })


def pairs_summary(prepared):
    from minifm import backends
    trainer, examples = prepared.trainer, prepared.examples
    config, shape = trainer.config, trainer.model.config
    C, H, W = examples.shape
    training = len(examples.parts["training"])
    flops = trainer.objective.flops(trainer.model, trainer.batches.batch(0)) / config.batch
    after = f", resumed after step {trainer.step:,}" if trainer.step else ""
    text = shape.text
    return in_lines({
        "pairs": f"{examples.description['name']}: {examples.count:,} pictures of {H} × {W}, "
                 f"{plural(C, 'channel')}, with {len(set(examples.captions)):,} different "
                 f"captions; {len(examples.parts['held_out']):,} of them held out",
        "tokens": f"{text.vocabulary:,} in the vocabulary, {text.context} of a text at most",
        "model": f"CLIP, {shape.parameters:,} parameters, {text.parameters:,} of them to read "
                 f"texts; {flops / 1e6:,.0f} MFLOP to train on a pair",
        "learning": "contrastive: its loss is in nats a pair",
        "training": f"{plural(config.steps, 'step')} of {plural(config.batch, 'pair')}, "
                    f"{config.steps * config.batch / training:.1f} times through them",
        "backend": backends.active().describe(),
        "run": f"{trainer.directory}{after}",
    })


def captions_summary(model, examples):
    """What is to be said of captions, where the model learns some."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return ""
    return f", {len(set(examples.captions)):,} captions of {tokenizer.vocabulary:,} tokens"


def model_summary(model):
    """What a model is made of, and which of it does not learn."""
    parts = getattr(model, "parts", lambda: {"": model})()
    return "; ".join(f"{type(part).__name__}, {part.config.parameters:,} parameters"
                     + ("" if trainable(part) else ", frozen") for part in parts.values())


def embeddings_summary(prepared):
    from minifm import backends
    trainer, examples = prepared.trainer, prepared.examples
    config, shape, clip = trainer.config, trainer.model.config, trainer.companion.embedder
    training = len(examples.parts["training"])
    after = f", resumed after step {trainer.step:,}" if trainer.step else ""
    return in_lines({
        "pairs": f"{examples.description['name']}: {examples.count:,} pictures with captions, as "
                 f"{clip.place} sees them, {shape.embedding} numbers each; "
                 f"{len(examples.parts['held_out']):,} of them held out",
        "model": f"Prior, {shape.parameters:,} parameters; "
                 f"{shape.flops(training=True) / 1e6:,.0f} MFLOP to train on an embedding",
        "learning": "denoising: predicts x0 under cosine noise; its loss is the squared error of a "
                    "number",
        "training": f"{plural(config.steps, 'step')} of {plural(config.batch, 'embedding')}, "
                    f"{config.steps * config.batch / training:.1f} times through them",
        "backend": backends.active().describe(),
        "run": f"{trainer.directory}{after}",
    })


def in_lines(parts):
    """["name       text", …]."""
    return [f"{name:<11}{text}" for name, text in parts.items()]
