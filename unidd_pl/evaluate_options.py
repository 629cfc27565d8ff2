"""Options of `unidd evaluate` that say which rows and columns its table has, and where it is computed."""

from __future__ import annotations

from typing import Any

from unidd_pl.baselines import Baseline
from unidd_pl.grouping import GroupBy
from unidd_pl.placement import Placement, Spread


def add_row_options(parser: Any) -> None:
    """Add them to a jsonargparse parser."""
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
    parser.add_argument("--workers", type=int, default=1, help="students trained at once, each in its own process")
    parser.add_argument("--devices", type=int, default=1, help="GPUs, or processes on a CPU")
    help_text = "over the devices: 'students', whole ones side by side, or 'batches', each student over all devices"
    parser.add_argument("--spread", type=Spread, default="students", help=help_text)
    help_text = "BatchNorm over the batch of all devices, so that their number does not show; for --spread batches"
    parser.add_argument("--sync_batchnorm", type=bool, default=False, help=help_text)
    help_text = "torch.compile the students, which takes minutes at first; needs a C++ compiler"
    parser.add_argument("--compile", type=bool, default=False, help=help_text)


def row_options(config: Any) -> dict[str, Any]:
    """Return the options of `add_row_options` as arguments of `Evaluation`."""
    rows = ("baselines", "group_by", "val_split", "best_epoch", "whole_epochs")
    placement = Placement(config.workers, config.devices, config.spread, config.sync_batchnorm, config.compile)
    return {**{name: config[name] for name in rows}, "placement": placement}
