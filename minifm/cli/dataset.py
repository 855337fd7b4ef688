"""`minifm dataset`: tasks with exact labels, and what is reached on them without a model; pictures,
sounds, films and solids, as files and at a glance."""

EXAMPLE = """\
example:
  minifm dataset stdlib-ner --out data
  minifm dataset --out data --no-baselines
  minifm dataset glyphs --variations 4 --out data
  minifm dataset photographs/ --size 32 --out data
"""
OWN = ("held_out", "seed")          # of MediaConfig, that text has as well


def arguments(parser, argv):
    from minifm.cli.arguments import add_fields
    from minifm.media import BUILT_IN, MediaConfig
    from minifm.tasks.stdlib import DATASETS
    parser.add_argument("data", nargs="*", metavar="DATA",
                        help=f"{', '.join(DATASETS)}: text tasks from the source of Python's "
                             f"standard library (default: all of these); {', '.join(BUILT_IN)}: "
                             "media, made here; or a path of media")
    parser.add_argument("--out", required=True, metavar="DIR",
                        help="gets a directory for each, which must not exist: of text, with "
                             "train.jsonl and held-out.jsonl; of media, with their files in train "
                             "and held-out, and a picture of them beside it")
    parser.add_argument("--held-out", type=float, default=0.2, metavar="FLOAT",
                        help="the part that is held out: of the modules, of the files, or of the "
                             "combinations that are made (default: 0.2)")
    parser.add_argument("--seed", type=int, default=0, metavar="INT",
                        help="decides what is held out, and what is made (default: 0)")
    parser.add_argument("--no-baselines", action="store_true",
                        help="of text: write the examples only, without learning from them")
    add_fields(parser, MediaConfig, "media", skip=OWN)


def run(args):
    from minifm.cli.arguments import part_of
    from minifm.errors import ConfigError
    from minifm.media import MediaConfig
    from minifm.tasks import stdlib
    names = list(dict.fromkeys(args.data)) or list(stdlib.DATASETS)
    text = [name for name in names if name.startswith("stdlib-")]
    media = [name for name in names if name not in text]
    config = part_of(MediaConfig, vars(args))
    shape = sorted(config.keys() - set(OWN))
    if shape and not media:
        raise ConfigError(f"{shape[0]}: it is of media, and only text is asked for")
    if text:
        _write_tasks(text, args)
    for name in media:
        _write_media(name, MediaConfig(**config), args.out)


# -- media -----------------------------------------------------------------------------------------


def _write_media(name, config, out):
    from pathlib import Path

    from minifm import media
    from minifm.media.writing import shown, write
    found = media.open(name, config)
    directory = Path(out) / Path(name).name
    write(found, directory)
    drawn = directory.with_name(f"{directory.name}.png")
    found.kind.save(drawn, found.take(shown(found)))
    print(f"{name}: {directory}, {drawn}")
    for line in described(found):
        print(f"  {line}")
    print(flush=True)


def described(examples):
    """Lines of text: how many there are, of what shape, and what stands in their captions."""
    from minifm.errors import listed, plural
    facts = examples.description
    yield (f"{plural(examples.count, examples.kind.name)} of shape "
           f"{' × '.join(map(str, examples.shape))}" +
           (f", {facts['rate']} samples a second" if "rate" in facts else "") +
           (", made here" if facts["generated"] else ""))
    for part, indices in examples.parts.items():
        yield f"{part.replace('_', '-'):<9} {len(indices):,}"
    if "held_out_pairs" in facts:
        pairs = listed([f"{thing} + {manner}" for thing, manner in facts["held_out_pairs"]])
        yield f"held-out combinations, of {facts['pairs']}: {pairs}"
    if examples.classes:
        yield f"{len(examples.classes)} classes: {listed(examples.classes)}"
    if examples.captions:
        step = max(1, examples.count // 4)
        yield "captions such as " + ", ".join(f'"{text}"' for text in examples.captions[::step][:4])


# -- text ------------------------------------------------------------------------------------------


def _write_tasks(names, args):
    from pathlib import Path

    from minifm.atomic import atomic_directory
    from minifm.tasks import describe, split, stdlib, write
    from minifm.tasks.baselines import compare
    from minifm.tasks.rules import RULES
    for name, examples in stdlib.build(names).items():
        parts = dict(zip(("train", "held-out"), split(examples, args.held_out, args.seed)))
        with atomic_directory(Path(args.out) / name) as aside:
            for part, found in parts.items():
                write(found, aside / f"{part}.jsonl")
        print(f"{name}: {Path(args.out) / name}")
        for part, found in parts.items():
            print(f"  {part:<9} {describe(found)}")
        if not args.no_baselines:
            scores = compare(parts["train"], parts["held-out"], RULES[name])
            print(_indented(baselines_table(scores)))
        print(flush=True)


def baselines_table(scores):
    """One row for each baseline, one column for each of its figures."""
    from minifm.tasks.scores import table
    figures = {name: found.figures for name, found in scores.items()}
    columns = list(next(iter(figures.values())))
    return table(("held out", *columns),
                 [(name, *map(found.get, columns)) for name, found in figures.items()])


def _indented(text):
    return "\n".join(f"  {line}" for line in text.splitlines())
