"""What is said of a run that is ready to train, a line a part: what it learns from, the model, what
is learnt, for how long, on what, and where."""

from minifm.errors import plural
from minifm.nn import trainable


def summary(trainer, **parts):
    """["name       text", …]: the parts, and what there is to say of any run."""
    from minifm import backends
    after = f", resumed after step {trainer.step:,}" if trainer.step else ""
    parts |= {"backend": backends.active().describe(), "run": f"{trainer.directory}{after}"}
    return [f"{name:<11}{text}" for name, text in parts.items()]


def of_text(prepared):
    """Of a language model (training/pretrain.py)."""
    trainer, corpus = prepared.trainer, prepared.corpus
    training, held_out = prepared.training, prepared.held_out
    shape, config, objective = trainer.model.config, trainer.config, trainer.objective
    skipped = "".join(f", {what} left out: {n:,}" for what, n in corpus.skipped.items() if n)
    words = training.count - training.documents         # without the end-of-text marks
    batch = trainer.batches.batch(0)
    flops = objective.flops(trainer.model, batch) / objective.tokens(batch)
    rounds = config.steps * config.batch * objective.window(prepared.length) / training.count
    context = f", context {shape.context}" if shape.context else ""
    return summary(
        trainer,
        text=f"{corpus.description}: {plural(corpus.count, 'document')}, "
             f"{corpus.size / 1e6:.2f} MB; {held_out.documents:,} of them held out{skipped}",
        tokens=f"{trainer.tokenizer.vocabulary:,} in the vocabulary; {training.count:,} to "
               f"train on, {training.size / max(1, words):.2f} bytes each",
        model=f"{type(trainer.model).__name__}, {shape.parameters:,} parameters: "
              f"{plural(shape.layers, 'layer')}, {shape.width} wide, "
              f"{plural(shape.heads, 'head')}{context}; {flops / 1e6:,.0f} MFLOP to train on a "
              "token",
        learning=f"{objective.name}: its loss is in {objective.scale} a {objective.unit}",
        training=f"{plural(config.steps, 'step')} of {config.batch} × {prepared.length} tokens, "
                 f"{rounds:.2f} times through the text")


def of_examples(prepared):
    """Of a diffusion model (training/denoising.py)."""
    trainer, examples, recipe = prepared.trainer, prepared.examples, prepared.recipe
    C, *space = recipe.shape
    told = f" in {len(recipe.classes)} classes" if recipe.classes else ""
    tokenizer = getattr(trainer.model, "tokenizer", None)
    if tokenizer is not None:
        told += f", {len(set(examples.captions)):,} captions of {tokenizer.vocabulary:,} tokens"
    if recipe.embedder is not None:
        told += f", as {recipe.embedder.place} sees them"
    return summary(
        trainer,
        examples=f"{examples.description['name']}: {plural(examples.count, recipe.kind.name)} of "
                 f"{' × '.join(map(str, space))}, {plural(C, 'channel')}{told}; "
                 f"{held_out(examples)}",
        model=f"{parts_of(trainer.model)}; {work(trainer)} an example",
        learning=of_noise(trainer),
        training=rounds_of(prepared, "example"))


def of_pictures(prepared):
    """Of a network that learns pictures without undoing noise (training/pictures.py)."""
    trainer, examples = prepared.trainer, prepared.examples
    objective, shape = trainer.objective, trainer.model.config
    C, H, W = examples.shape
    latents = f"; latents of {shape.latents} × {H // shape.stride} × {W // shape.stride} numbers " \
        f"for {C * H * W:,}" if hasattr(shape, "latents") else ""
    return summary(
        trainer,
        pictures=f"{examples.description['name']}: {plural(examples.count, 'picture')} of "
                 f"{H} × {W}, {plural(C, 'channel')}; {held_out(examples)}",
        model=f"{parts_of(trainer.model)}; {work(trainer)} a picture{latents}",
        learning=f"{objective.name}: its loss is the {objective.scale} of a {objective.unit}",
        training=rounds_of(prepared, "picture"))


def of_captions(prepared):
    """Of a CLIP (training/contrastive.py)."""
    trainer, examples = prepared.trainer, prepared.examples
    objective, shape = trainer.objective, trainer.model.config
    C, H, W = examples.shape
    return summary(
        trainer,
        pairs=f"{examples.description['name']}: {examples.count:,} pictures of {H} × {W}, "
              f"{plural(C, 'channel')}, with {len(set(examples.captions)):,} different captions; "
              f"{held_out(examples)}",
        tokens=f"{shape.text.vocabulary:,} in the vocabulary, {shape.text.context} of a text at "
               "most",
        model=f"CLIP, {shape.parameters:,} parameters, {shape.text.parameters:,} of them to read "
              f"texts; {work(trainer)} a pair",
        learning=f"{objective.name}: its loss is in {objective.scale} a {objective.unit}",
        training=rounds_of(prepared, "pair"))


def of_embeddings(prepared):
    """Of a prior (training/priors.py)."""
    trainer, examples, shape = prepared.trainer, prepared.examples, prepared.trainer.model.config
    return summary(
        trainer,
        pairs=f"{examples.description['name']}: {examples.count:,} pictures with captions, as "
              f"{trainer.companion.embedder.place} sees them, {shape.embedding} numbers each; "
              f"{held_out(examples)}",
        model=f"Prior, {shape.parameters:,} parameters; {work(trainer)} an embedding",
        learning=of_noise(trainer),
        training=rounds_of(prepared, "embedding"))


# -- what several of them say ----------------------------------------------------------------------


def parts_of(model):
    """What a model is made of, and which of it does not learn."""
    parts = getattr(model, "parts", lambda: {"": model})()
    return "; ".join(f"{type(part).__name__}, {part.config.parameters:,} parameters"
                     + ("" if trainable(part) else ", frozen") for part in parts.values())


def held_out(examples):
    return f"{len(examples.parts['held_out']):,} of them held out"


def work(trainer):
    flops = trainer.objective.flops(trainer.model, trainer.batches.batch(0)) / trainer.config.batch
    return f"{flops / 1e6:,.0f} MFLOP to train on"


def of_noise(trainer):
    objective, scheduler = trainer.objective, trainer.companion.scheduler
    return f"{objective.name}: predicts {scheduler.objective} under {scheduler.noise} noise; its " \
        f"loss is the {objective.scale} of a {objective.unit}"


def rounds_of(prepared, thing):
    config, training = prepared.trainer.config, prepared.examples.parts["training"]
    return f"{plural(config.steps, 'step')} of {plural(config.batch, thing)}, " \
        f"{config.steps * config.batch / len(training):.1f} times through them"
