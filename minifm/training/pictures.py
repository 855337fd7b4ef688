"""From pictures to networks that learn them without undoing noise: pictures → network → Trainer.

    autoencoder   pictures through few numbers and back                     (autoencoding.py)
    gan           pictures of noise, that another network takes for real    (adversarial.py)

What a step learns, the noise in it too, is a function of the seed and the step's number: a resumed
run goes on bitwise, and two evaluations differ by the network alone. A run's directory is that of
any run (training/checkpoint.py), with `samples/`: at each evaluation, what the network makes.
"""

from dataclasses import asdict, dataclass
from functools import partial

from minifm.errors import ConfigError
from minifm.hub import load_model, resolve
from minifm.media import PICTURE, Examples
from minifm.models import ARCHITECTURES, architecture_of
from minifm.rng import Rng
from minifm.training import memory
from minifm.training.adversarial import Adversarial
from minifm.training.autoencoding import Autoencoding
from minifm.training.denoising import open_examples
from minifm.training.judging import JudgeConfig
from minifm.training.rounds import HeldOutPictures, TrainingPictures
from minifm.training.run import begin, model_to_resume, write_run
from minifm.training.told import SAMPLES
from minifm.training.trainer import Trainer

OBJECTIVES = {"autoencoder": Autoencoding, "gan": Adversarial}


@dataclass(frozen=True)
class PreparedPictures:
    """A run that is ready to train, and the pictures that it learns."""

    trainer: Trainer
    examples: Examples


def prepare(directory, wanted, config, *, learning=None, judging=JudgeConfig(), shape=None,
            arch="autoencoder", initial=None, resume=False, force=False, ceiling=None, shown=True):
    """The run in `directory`, new or (`resume`) taken up at its newest checkpoint.

    wanted   an ExamplesConfig;  config  a TrainConfig
    learning what the objective of `arch`, one of OBJECTIVES, is set to (default: its defaults)
    judging  a JudgeConfig, of a gan
    shape    {field: value} of the network's configuration; what the pictures say is theirs
    initial  a model's directory or hub name to start from, in place of random weights
    ceiling, shown   as of training.pretrain.prepare

    Raises ConfigError or FormatError before anything is written, wherever it can.
    """
    directory, newest, say = begin(directory, (wanted.data,), resume, shown)
    examples = open_examples(wanted, say)
    require_pictures(examples, arch)
    if config.recompute:
        raise ConfigError(f"recompute: an {arch} does not compute its blocks again; leave it out")
    objective = OBJECTIVES[arch](learning or OBJECTIVES[arch].settings())
    network = _network(newest, initial, examples, shape or {}, arch, objective, config)
    parts = [kind(objective, examples, examples.parts[part], batch=config.batch,
                  rng=Rng(config.seed).child(objective.name, part))
             for kind, part in ((TrainingPictures, "training"), (HeldOutPictures, "held_out"))]
    sketches = objective.sketches(directory / SAMPLES, examples, config.seed)
    curve = judging.curve(directory, examples, sketches, config.seed,
                          lambda places: examples.labels[places])
    say("measuring the memory that a step takes")
    trainer = Trainer(
        network, parts[0], config, directory=directory, held_out=parts[1], objective=objective,
        shown=shown, ceiling=ceiling, sketch=curve.sketch if curve else sketches,
        measure=curve and curve.measure, least=True,
        settle=partial(objective.settle, examples=examples, batch=config.batch))
    if curve:
        say("teaching a judge what the pictures are")
        curve.teach()
    if resume:
        trainer.resume(force=force)
    settings = {key: value for key, value in asdict(network.config).items()
                if key not in objective.not_chosen}
    write_run(directory, "pretrain", {"arch": arch} | settings | asdict(wanted)
              | asdict(objective.config) | asdict(judging) | asdict(config), trainer,
              examples=examples.description)
    return PreparedPictures(trainer, examples)


def require_pictures(examples, arch):
    """Raise ConfigError for data that are no pictures, or have none to learn or evaluate on."""
    if examples.kind is not PICTURE:
        raise ConfigError(f"arch: an {arch} learns pictures, not {examples.kind.name}s")
    for part, indices in examples.parts.items():
        if not len(indices):
            raise ConfigError(f"data: {examples.description['name']} has no {part} pictures")


def _network(newest, initial, examples, shape, arch, objective, config):
    """The network of the checkpoint `newest`, or of the model `initial`, if it fits; or a new one.
    `objective` is told its configuration."""
    if newest is not None:
        network = model_to_resume(newest, arch, shape)
    elif initial is not None:
        network = _started(initial, examples, shape, arch, objective)
    else:
        whole = ARCHITECTURES[arch].config(**shape | objective.shape_for(examples))
        _require_size(examples, whole, arch)
        memory.require_parameters(whole.parameters, config)
        network = ARCHITECTURES[arch].model(whole, Rng(config.seed).child("model"))
    if newest is None:
        objective.begin(network)
    objective.model = network.config
    return network


def _require_size(examples, config, arch):
    """Raise ConfigError for pictures that a network's strides do not divide."""
    space = tuple(map(int, examples.shape[1:]))
    if any(n % config.stride for n in space):
        raise ConfigError(f"size: pictures of {' × '.join(map(str, space))}, and an {arch} of "
                          f"{len(config.widths)} levels takes multiples of {config.stride}; choose "
                          "--size, or fewer --widths")


def _started(initial, examples, shape, arch, objective):
    """The network of a model to start from; raises ConfigError where it is another."""
    if shape:
        raise ConfigError(f"{', '.join(shape)}: the model to start from has its own; leave it out")
    network = load_model(resolve(initial))
    if architecture_of(network) != arch:
        raise ConfigError(f"arch: {initial} is of {architecture_of(network)}, not of {arch}")
    wanted = objective.shape_for(examples)
    for key in objective.kept:
        own = getattr(network.config, key)
        if own != wanted[key]:
            raise ConfigError(f"{initial}: {key}: the model has {own}, and these pictures take "
                              f"{wanted[key]}")
    _require_size(examples, network.config, arch)
    return network
