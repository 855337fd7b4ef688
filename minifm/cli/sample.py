"""`minifm sample`: from noise to pictures, sounds, films or solids, with a diffusion model."""

import sys
import time
from pathlib import Path

import numpy as np

from minifm.cli.arguments import add_fields, build
from minifm.cli.imagined import add_flags, alike, check_flags, imagined
from minifm.errors import ConfigError, listed, plural
from minifm.generation.diffusion import Known, Pipeline, SampleConfig
from minifm.generation.prior import PriorSampleConfig

EXAMPLE = """\
example:
  minifm sample runs/digits --count 40 --out digits.png
  minifm sample runs/digits --classes 3,7 --guidance 2 --sampler dpm_2m --steps 15 --out a.png
  minifm sample runs/digits --classes 3 --count 1 --strip --out strip.png
  minifm sample runs/digits --gif --out denoising.gif
  minifm sample runs/glyphs --prompt "bold italic letter A" --guidance 4 --seed 1 --out a.png
  minifm sample runs/decoder --prior runs/prior --prompt "bold letter A" --count 1 --out one.png
  minifm sample runs/decoder --like one.png --like other.png --count 9 --out between.png
  minifm sample runs/digits --init-image three.png --strength 0.5 --classes 8 --out b.png
  minifm sample runs/digits --init-image three.png --mask half.png --out c.png
  minifm sample runs/digits --count 1000 --check --out made.npy
"""
MODES = ("strip", "gif", "check")
NAMED = {"classes": "classes", "prompt": "prompts"}     # flag -> what it has several of
STILL, FRAMES = 1.5, 40         # seconds that a GIF stands still at its end, its frames at most


def arguments(parser, argv):
    parser.add_argument("model", help="a run of pretrain, one of its checkpoints, or the directory "
                                      "of a diffusion model")
    parser.add_argument("--out", metavar="FILE", required=True,
                        help="where to: .png, a picture of all; .npy, the numbers; .gif for films, "
                             ".wav for sounds")
    parser.add_argument("--classes", metavar="A,B,…",
                        help="what to make, in equal parts; none: without any class (default: all "
                             "classes that the model knows)")
    parser.add_argument("--prompt", metavar="TEXT", action="append",
                        help="what to make, of a model that has learnt captions; several: in equal "
                             "parts; \"\": whatever it likes (default)")
    parser.add_argument("--count", type=int, default=16, metavar="INT",
                        help="how many to make (default: 16)")
    add_fields(parser, SampleConfig, "from noise to data")
    add_flags(parser)
    known = parser.add_argument_group("from what is there")
    known.add_argument("--init-image", metavar="FILE",
                       help="start from this picture (or .npy), as far as --strength leaves it")
    known.add_argument("--mask", metavar="FILE",
                       help="a picture: what is black of it stays as it is in --init-image, what "
                            "is white is made anew")
    shown = parser.add_argument_group("what is shown, in place of the outcome")
    shown.add_argument("--strip", action="store_true",
                       help="a row for each: noise covers what was made, or --init-image, and the "
                            "model makes something of that noise")
    shown.add_argument("--gif", action="store_true", help="the way from noise as an animation")
    shown.add_argument("--check", action="store_true",
                       help="also say how many are recognised, by a reader of what minifm makes "
                            "itself or a classifier that has learnt from the run's data, and "
                            "whether they are copies; of captions, those of letters in styles "
                            "that training has not seen")


def run(args):
    if args.count < 1:
        raise ConfigError(f"count: expected at least 1, got {args.count}")
    config = build(SampleConfig, vars(args))
    pipeline = Pipeline.load(directory_of(args.model), config.sampler)
    refuse(args, pipeline, pipeline.scheduler(config).sampler)
    examples = learnt_from(args.model, pipeline) if args.check else None
    asked = asked_of(args, pipeline, examples)
    told = asked if pipeline.recipe.embedder is None else \
        embeddings_of(args, pipeline, config, asked)
    known = read_known(args, pipeline.recipe)
    started, states = time.perf_counter(), []
    watch = (lambda i, level, x, found: states.append(
        pipeline.space.outward(x.numpy(), config.batch))) if args.gif else None
    if args.strip:
        begun = known.start if known.start is not None else pipeline.sample(told, config)
        shape = (len(told), *pipeline.recipe.shape)
        made = pipeline.strip(np.broadcast_to(begun, shape), told, config)
    else:
        made = pipeline.sample(told, config, known=known, watch=watch)
    seconds = time.perf_counter() - started
    require_finite(made, args.model)
    write(args, pipeline.recipe, made, states)
    print(f"{plural(args.count, pipeline.recipe.kind.name)} in {seconds:.1f} s, "
          f"{plural(config.steps, 'step')} of {pipeline.scheduler(config).sampler}: {args.out}")
    if args.check and pipeline.condition.flag == "prompt":
        check_captions(examples, made, asked)
    elif args.check:
        check(examples, made, labels_of(asked, examples))


def directory_of(model):
    """A run's last checkpoint, or the directory of a model, by its path or its name on the hub."""
    from minifm.hub import resolve
    last = Path(model).expanduser() / "last"
    return last if last.exists() else resolve(model)


def refuse(args, pipeline, sampler):
    """Raise ConfigError for what does not go together, before anything is computed."""
    if hasattr(args, "eta") and sampler != "ddim":
        raise ConfigError(f"eta: only ddim has it, and {sampler} is to be used")
    if hasattr(args, "rescale") and getattr(args, "guidance", 1) == 1:
        raise ConfigError("rescale: it is of --guidance, which is 1")
    check_flags(args, pipeline.recipe.embedder)
    modes = [f"--{name}" for name in MODES if getattr(args, name)]
    if len(modes) > 1:
        raise ConfigError(f"{' and '.join(modes)}: choose one of them")
    if args.mask and not args.init_image:
        raise ConfigError("mask: it says what stays of --init-image, which is missing")
    if hasattr(args, "strength") and args.strip:
        raise ConfigError("strength: --strip goes all the way to noise and back; leave it out")
    if hasattr(args, "strength") and (args.mask or not args.init_image):
        raise ConfigError("strength: it says how far --init-image is left, " + (
            "and with --mask all of it stays where the mask is black" if args.mask else
            "which is missing"))
    if args.strip and args.mask:
        raise ConfigError("--strip and --mask: choose one of them")
    ending = Path(args.out).suffix.lower()
    if args.gif and ending != ".gif":
        raise ConfigError(f"{args.out}: an animation is written to .gif")
    if args.strip and ending != ".png":
        raise ConfigError(f"{args.out}: a strip is written to .png")
    if not args.gif:
        pipeline.recipe.kind.check_path(args.out)


def asked_of(args, pipeline, examples):
    """What is asked for each of --count examples: a class or a prompt, or None for neither; as many
    of each, those alike together. With --check of a model of captions, and no prompt, those of the
    held-out `examples`. Raises ConfigError for what the model does not know or what cannot be
    checked, and for more than are to be made."""
    condition, said = pipeline.condition, {"classes": args.classes, "prompt": args.prompt}
    for flag, value in said.items():
        if value is not None and flag != condition.flag:
            instead = f"ask by --{condition.flag}" if condition.flag else "leave it out"
            raise ConfigError(f"{flag}: {condition.said(pipeline.place)}; {instead}")
    if condition.flag == "prompt" and args.check:
        from minifm.evaluation.lettering import held_out_captions, require_letters
        require_letters(examples, args.prompt or ())
        if args.prompt is None:
            return held_out_captions(examples, args.count)
    if args.like:
        return [None] * args.count
    names = classes_of(args.classes, condition.names) if condition.flag == "classes" else \
        prompts_of(args.prompt) if condition.flag == "prompt" else (None,)
    if args.check and None in names:
        raise ConfigError("check: what is made without a class cannot be recognised as one")
    if said.get(condition.flag) is not None and len(names) > args.count:
        raise ConfigError(f"count: expected at least one for each of the {len(names)} "
                          f"{NAMED[condition.flag]}, got {args.count}")
    if getattr(args, "guidance", 1) != 1 and condition.flag and not any(names):
        raise ConfigError(f"guidance: it leads towards what is asked for, which is nothing; give "
                          f"--{condition.flag}, or leave it out")
    if condition.flag == "prompt" and None in names:
        print("prompt     empty: made without any text", file=sys.stderr)
    return [names[i * len(names) // args.count] if args.count >= len(names) else names[i]
            for i in range(args.count)]


def embeddings_of(args, pipeline, config, prompts):
    """What is asked of a model that has learnt embeddings of pictures: one, or None, for each of
    --count examples. `prompts` are as many, of None where there are none."""
    embedder, shape = pipeline.recipe.embedder, pipeline.recipe.shape
    if args.like:
        pictures = np.concatenate([read_example(path, shape) for path in args.like])
        return alike(pictures, embedder, args.count)
    if not args.prior:
        return prompts
    return imagined(directory_of(args.prior), embedder, prompts,
                    build(PriorSampleConfig, vars(args)), config.seed, config.batch)


def classes_of(said, known):
    """The names of classes that --classes says, None for "none"; all, where it says nothing."""
    if said is None:
        return known
    if said in known:
        return (said,)
    return [None if name == "none" and "none" not in known else name for name in said.split(",")]


def prompts_of(said):
    """The prompts, None for an empty one."""
    return [prompt if prompt.strip() else None for prompt in said or [""]]


# -- what is there already -------------------------------------------------------------------------


def read_known(args, recipe):
    """The Known of --init-image and --mask."""
    if not args.init_image:
        return Known()
    start = read_example(args.init_image, recipe.shape)
    if not args.mask:
        return Known(start=start)
    mask = read_example(args.mask, (1, *recipe.shape[1:]))
    return Known(part=start, mask=(mask < 0).astype(np.float32))


def read_example(path, shape):
    """float32 [1, C, *space] in -1 … 1 of a .npy file of that shape, or of a picture, resized.
    Raises ConfigError or FormatError."""
    if Path(path).suffix == ".npy":
        from minifm.media.arrays import read_numpy
        found = np.asarray(read_numpy(path), np.float32)
        if found.shape not in (shape, (1, *shape)) or not np.abs(found).max() <= 1:
            raise ConfigError(f"{path}: expected numbers in -1 … 1 of shape {list(shape)}, got "
                              f"{list(found.shape)}, {found.min():.3g} … {found.max():.3g}")
        return found.reshape(1, *shape)
    if len(shape) != 3 or shape[0] not in (1, 3) or shape[1] != shape[2]:
        raise ConfigError(f"{path}: the model makes examples of shape {list(shape)}; give one as "
                          ".npy")
    from minifm.media.drawing import from_bytes
    from minifm.media.pictures import opened, squared
    if not Path(path).is_file():
        raise ConfigError(f"{path}: there is no such file")
    with opened(path) as image:
        pixels, done = squared(image, shape[1], shape[0] == 1, path)
    if done:
        print(f"{path}: {listed(done)}", file=sys.stderr)
    return from_bytes(pixels)[None]


def require_finite(made, model):
    """Raise ConfigError for examples with what are no numbers, before anything is written."""
    bad = int((~np.isfinite(made)).any(tuple(range(1, made.ndim))).sum())
    if bad:
        raise ConfigError(f"{model}: expected finite numbers, and {bad} of the {len(made)} "
                          "examples that it made have others; are its weights damaged?")


# -- out -------------------------------------------------------------------------------------------


def write(args, recipe, made, states):
    """Write what was made, or the way to it, to the file --out."""
    if args.strip:
        write_strip(args.out, recipe.kind, made)
    elif args.gif:
        write_animation(args.out, recipe.kind, states)
    else:
        recipe.kind.save(args.out, made, rate=recipe.rate)


def write_strip(path, kind, made):
    """A row of pictures for each of `made` [B, F, C, *space]."""
    from minifm.media import drawing
    B, F = made.shape[:2]
    seen = kind.view(made.reshape(B * F, *made.shape[2:]))
    drawing.write_png(path, drawing.grid(seen, F if seen.shape[1] * 2 > seen.shape[2] else 1))


def write_animation(path, kind, states):
    """A grid of pictures for each of `states`, some of which are left out where they are many."""
    from minifm.media import drawing
    kept = np.unique(np.linspace(0, len(states) - 1, min(FRAMES, len(states))).round().astype(int))
    frames = np.stack([drawing.grid(kind.view(states[i])) for i in kept])
    drawing.write_gif(path, frames, [drawing.FRAME] * (len(frames) - 1) + [STILL])


def learnt_from(model, pipeline):
    """The Examples of the run that the model, a Pipeline, is of; with a new class those of the
    model that it was taught beside. Raises ConfigError where it is of none."""
    from minifm.training.concept import beside
    from minifm.training.denoising import ExamplesConfig
    from minifm.training.run import read_settings
    from minifm.training.tuning import TuneConfig, fitting, sides
    places = Path(model).expanduser(), Path(model).expanduser().parent
    place = next((place for place in places if (place / "run.json").exists()), None)
    if place is None:
        raise ConfigError(f"check: {model} lies in no run of pretrain or finetune, whose data are "
                          "needed")
    settings = read_settings(place)
    wanted = build(ExamplesConfig, settings)
    say = lambda line: print(line, file=sys.stderr)     # noqa: E731
    if "model" not in settings:
        return fitting(pipeline, wanted, say)
    examples, _ = sides(pipeline, wanted, build(TuneConfig, settings), settings["seed"], say)
    if settings["concept"] is None:
        return examples
    if pipeline.condition.flag != "classes":
        raise ConfigError("check: there is no reader of a concept in captions")
    return beside(learnt_from(settings["model"], pipeline), examples, settings["concept"])


def labels_of(asked, examples):
    """The places [N] of the classes asked for among those of the Examples; raises ConfigError for
    one that they have none of."""
    unknown = [name for name in asked if name not in examples.classes]
    if unknown:
        raise ConfigError(f"check: the data have no examples of {listed(dict.fromkeys(unknown))}; "
                          "choose others by --classes")
    return np.array([examples.classes.index(name) for name in asked])


def check(examples, made, labels):
    """Print what evaluation/made.py finds."""
    from minifm.evaluation.made import distances, recognised, resembling
    found, far = recognised(examples, made, labels), distances(examples, made)
    print(f"recognised  {found.made:.1%} of those made as the class asked for ({found.real:.1%} of "
          f"real held-out examples) by {found.judge}")
    tell_classes(found)
    if "concept" in examples.description:
        alike = resembling(examples, made, labels)
        print(f"alike       {alike.made:.1%} of those made as the class asked for "
              f"({alike.real:.1%} of the training examples) by {alike.judge}")
        tell_classes(alike)
    if found.manner is not None:
        print(f"            {found.manner:.1%} in one of the manners that there are")
    tell_distances(far)


def tell_classes(found):
    """Print what is Recognised of each class."""
    print("            " + ", ".join(f"{name}: {part:.0%}"
                                     for name, part in found.by_class.items()))


def check_captions(examples, made, captions):
    """Print what evaluation/lettering.py finds, and how far what was made is from what was learnt.
    """
    from minifm.evaluation.lettering import read_back
    from minifm.evaluation.made import distances
    places = examples.parts["held_out"]
    found = read_back(made, captions)
    real = read_back(examples.take(places), [examples.captions[place] for place in places])
    for name, of_made, of_real in (("letter", found.letter, real.letter),
                                   ("style", found.style, real.style),
                                   ("both", found.both, real.both)):
        print(f"{name:<12}{of_made:.1%} of those made are as the caption says ({of_real:.1%} of "
              "real held-out pictures), read by comparison with all letters")
    tell_distances(distances(examples, made))


def tell_distances(far):
    """Print Distances."""
    from minifm.evaluation.made import NEAR
    print(f"nearest     training example at {np.median(far.made):.3f} (median; of real held-out "
          f"examples {np.median(far.real):.3f})")
    print(f"near        {far.near:.1%} are nearer than {far.threshold:.3f}, as {NEAR:.0%} of real "
          f"held-out ones are; copies: {far.copies:.1%} (nearer than {0.5 * far.real.min():.3f})")
