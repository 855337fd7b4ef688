"""`minifm labels`: how many labels a pretrained model needs, and how many one does that begins with
random weights; a table and a picture."""

import sys
from pathlib import Path

from minifm.cli.arguments import add_config, add_fields, build, part_of, settings
from minifm.errors import ConfigError
from minifm.training.config import TrainConfig

EXAMPLE = """\
example:
  minifm labels runs/roberta --data stdlib-kind --out runs/labels
  minifm labels runs/roberta --data stdlib-ner --counts 20 100 500 --out runs/labels-ner
"""


def arguments(parser, argv):
    from minifm.training.finetune import TaskConfig
    parser.usage = "minifm labels MODEL --data SOURCE ... --out DIRECTORY [options]"
    parser.add_argument("model", help="the pretrained model, a directory or a name on the hub")
    parser.add_argument("--out", metavar="DIRECTORY", required=True,
                        help="gets the runs, labels.json and labels.png; what is finished there is "
                             "kept")
    parser.add_argument("--counts", type=int, nargs="+", metavar="INT", default=[50, 200, 1000],
                        help="how many labelled examples to learn from (default: 50 200 1000)")
    add_config(parser)
    add_fields(parser, TaskConfig, "task", skip=("examples",))
    add_fields(parser, TrainConfig, "training (as in finetune)", defaults=False)


def run(args):
    from minifm.training.finetune import TaskConfig
    from minifm.training.labels import study
    if any(count < 2 for count in args.counts):
        raise ConfigError(f"counts: expected at least 2, got {min(args.counts)}")
    said = settings(args, TaskConfig, TrainConfig, also={})
    found = study(args.out, args.model, build(TaskConfig, said), args.counts,
                  part_of(TrainConfig, said),
                  say=lambda line: print(line, file=sys.stderr, flush=True))
    print(shown(found))
    picture = Path(args.out) / "labels.png"
    print(f"\nsaved as   {args.out}/labels.json" + (f", {picture}" if picture.exists() else ""))


def shown(found):
    """A row for each way to learn, a column for each number of labels; the first score of each."""
    from minifm.tasks.scores import table
    counts = list(next(iter(found.values())))
    measure = next(iter(found["pretrained"][counts[0]]))
    return table((measure.replace("_", " "), *(f"{count:,} labels" for count in counts)),
                 [(name, *(next(iter(scores[count].values())) for count in counts))
                  for name, scores in found.items()])
