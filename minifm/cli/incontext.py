"""`minifm incontext`: a small model, trained from scratch, learns new rules from its prompt alone;
the table says of which families."""

from minifm.errors import ConfigError

EXAMPLE = """\
example:
  minifm incontext --out runs/incontext
  minifm incontext --out runs/longer --minutes 20
  minifm incontext --out runs/longer --resume
"""
SHOWN = (0, 1, 2, 4, 8)         # examples; then the most that fit


def arguments(parser, argv):
    parser.add_argument("--out", metavar="DIRECTORY", required=True,
                        help="gets the run, incontext.json and incontext.png")
    parser.add_argument("--minutes", type=float, metavar="FLOAT",
                        help="train for about so long, in place of a number of steps")
    parser.add_argument("--steps", type=int, metavar="INT",
                        help="train for so many steps: the same run again, on any machine "
                             "(default: 25000, a quarter of an hour); the first 1,000 are of "
                             "mapping alone")
    parser.add_argument("--seed", type=int, metavar="INT",
                        help="of weights and episodes (default: 0)")
    parser.add_argument("--episodes", type=int, default=400, metavar="INT",
                        help="to ask in about the held-out rules of each family (default: 400)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")


def run(args):
    from minifm.cli.pretrain import trained
    from minifm.picture import MISSING, can_draw
    from minifm.training.incontext import configuration, finish, prepare
    if args.episodes < 1:
        raise ConfigError(f"episodes: expected at least 1, got {args.episodes}")
    if args.minutes is not None and not 0 < args.minutes < 1e5:
        raise ConfigError(f"minutes: expected a number above 0, got {args.minutes}")
    if args.resume and any(x is not None for x in (args.minutes, args.steps, args.seed)):
        raise ConfigError("resume: the run has its own length and seed; leave --minutes, --steps "
                          "and --seed out")
    if None not in (args.minutes, args.steps):
        raise ConfigError("minutes: --steps says already how long to train; leave one out")
    trainer = prepare(args.out, None if args.resume
                      else configuration(args.seed or 0, steps=args.steps, minutes=args.minutes))
    status = trained(trainer, verb="incontext")
    if status:
        return status
    print(shown(finish(trainer, episodes=args.episodes)))
    picture = f", {args.out}/incontext.png" if can_draw() else f"; no picture: {MISSING}"
    print(f"\nsaved as   {args.out}/incontext.json{picture}")
    return 0


def shown(found):
    """A row for each family, a column for each number of examples, then what did not work."""
    from minifm.tasks.scores import table
    lines = [table(
        ("held-out rules", *(f"{n} shots" for n in SHOWN), "most", "accuracy", "95 %", "chance",
         "shuffled"),
        [(name, *(f["accuracy"][n] for n in SHOWN), len(f["accuracy"]) - 1, f["accuracy"][-1],
          "{:.3f}–{:.3f}".format(*f["interval"][-1]), f["chance"][-1], f["shuffled"])
         for name, f in found.items()])]
    flat = [name for name, f in found.items() if not f["rises"]]
    if flat:
        lines.append(f"not above chance after the most examples: {', '.join(flat)}")
    return "\n".join(lines)
