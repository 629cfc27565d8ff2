"""Options of `unidd evaluate` that say which rows and columns its table has."""

from __future__ import annotations

from typing import Any

from unidd_pl.baselines import Baseline
from unidd_pl.grouping import GroupBy


def add_row_options(parser: Any) -> None:
    """Add the options that say which rows and columns the table has to a jsonargparse parser."""
    help_text = "real images beside those drawn at random: k-centre, herding (in the teacher's features), whole"
    parser.add_argument("--baselines", type=Baseline, nargs="+", default=["random"], help=help_text)
    help_text = "'config' averages sets that differ in the distillation seed alone; 'set' makes a row of each"
    parser.add_argument("--group_by", type=GroupBy, default="set", help=help_text)
    help_text = "share of the training images to hold out and to choose an epoch on, for example 0.1"
    parser.add_argument("--val_split", type=float, default=0.0, help=help_text)
    help_text = "add a column with the best epoch, which is chosen on the test images"
    parser.add_argument("--best_epoch", type=bool, default=False, help=help_text)
    help_text = "epochs on the whole data set; default: the protocol's"
    parser.add_argument("--whole_epochs", type=int, default=None, help=help_text)


def row_options(config: Any) -> dict[str, Any]:
    """Return the options of `add_row_options` as arguments of `Evaluation`."""
    return {name: config[name] for name in ("baselines", "group_by", "val_split", "best_epoch", "whole_epochs")}
