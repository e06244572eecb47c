"""Arguments of compare_generators.py."""

import argparse

from comparison.beside_the_loss import LOSSES
from comparison.contenders import CONTENDERS
from comparison.inputs import Inputs
from comparison.parsers import METRICS, compare_parser
from comparison.pictures import PICTURES
from comparison.registry import ALL, WITH_BACKBONE, WITH_SMALL_NETWORK
from comparison.study import Study
from pml_gca.utils.command_line import check_minimums
from pml_gca.utils.validation import suggestion

COUNTS = ("trials", "trial_iterations", "seeds", "iterations", "embedding_size", "evaluate_every", "processes")
KEPT = "docs/evidence"
"""The study whose results the docs show."""

LIST = "the list that compare_generators.py prints without arguments"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the arguments. `out` and `trials_from` are studies; `only_forecast` says that nothing is to be trained.

    `usual` says that no generator was named.
    """
    parser = compare_parser()
    args = parser.parse_args(argv)
    for option, known in (("losses", LOSSES), ("generators", ALL)):
        for name in getattr(args, option) or ():
            if name not in known:
                parser.error(f"argument --{option}: invalid choice: {name!r}{suggestion(name, known)}; see {LIST}")
    args.only_forecast = args.out is None and not (args.report or args.repeat or args.summary)
    if args.trials_from and args.time:
        parser.error("--time needs the trials of --out: leave out --trials-from")
    if args.only_forecast and (args.add or args.time):
        parser.error(f"--{'add' if args.add else 'time'} needs --out, the folder of the study")
    if args.summary == "screened" and args.metric != METRICS[0]:
        parser.error("--metric needs --summary runs: screened seeds have Recall@1 of validation classes alone")
    args.out = Study(args.out or KEPT)
    if (args.data is None) != (args.backbone is None) or (args.weights and args.backbone is None):
        parser.error("--data needs --backbone and the other way round; --weights needs both")
    if args.freeze_through and args.backbone is None:
        parser.error("--freeze-through needs --backbone")
    args.inputs = Inputs(args.data, args.weights, args.device, args.out.folder / "cells" / "frozen", args.unreadable)
    everyone, usual = (WITH_BACKBONE, PICTURES) if args.backbone else (WITH_SMALL_NETWORK, CONTENDERS)
    args.usual = not args.generators
    args.generators = args.generators or list(everyone if args.report else usual)
    args.trials_from = Study(args.trials_from) if args.trials_from else args.out
    if args.screen is not None:
        check_minimums(parser, args, screen=1)
    check_minimums(parser, args, **dict.fromkeys(COUNTS, 1), image_size=16)  # the network halves images four times
    if args.embedding_size % 2:
        parser.error(f"--embedding-size must be divisible by the 2 heads of the graph, got {args.embedding_size}")
    if args.repeat:
        stage, loss, name, number = args.repeat
        if not number.isdecimal():
            parser.error(f"--repeat needs a number (a seed, or that of a trial) last, got {number}")
        args.repeat = (stage, loss, name, int(number))
    return args
