"""The commands that come before a distillation: pretrain, convert, methods."""

from __future__ import annotations

import sys
from pathlib import Path

from unidd_pl.command_options import COMMANDS, add_accelerator, parsed, record, stage_parser, with_data_of_config


def pretrain(arguments: list[str]) -> None:
    """Run `unidd pretrain`."""
    from unidd_pl.pretraining import TeacherRecipe
    from unidd_pl.stages import teacher_stage

    parser = stage_parser("pretrain")
    add_accelerator(parser)
    parser.add_class_arguments(TeacherRecipe, "teacher")
    config, objects = parsed(parser, arguments)
    teacher_stage(
        objects.teacher,
        objects.data,
        Path(config.cache_dir),
        objects.tracking,
        accelerator=config.accelerator,
        config=record(parser, config),
    )


def convert(arguments: list[str]) -> None:
    """Run `unidd convert`."""
    from jsonargparse import ArgumentParser

    from unidd_pl.convert import convert
    from unidd_pl.data import ImageData

    parser = ArgumentParser(prog="unidd convert", description=COMMANDS["convert"], exit_on_error=False)
    parser.add_argument("--config", type=str, help="YAML file of any command; only its data are taken")
    parser.add_argument("--data", type=ImageData, required=True, help="the real data")
    parser.add_argument("--max_side", type=int, default=500, help="longer side that larger images are brought to")
    parser.add_argument("--skip_unreadable", type=bool, default=False, help="leave unreadable images out")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace .beton files that are there")
    config = parser.parse_args(with_data_of_config(arguments))
    convert(
        parser.instantiate(config).data,
        max_side=config.max_side,
        skip_unreadable=config.skip_unreadable,
        overwrite=config.overwrite,
    )


def methods(arguments: list[str]) -> None:
    """Run `unidd methods`."""
    from jsonargparse import ArgumentParser

    from unidd_pl.catalogue import method_table

    parser = ArgumentParser(prog="unidd methods", description=COMMANDS["methods"], exit_on_error=False)
    parser.add_argument("--markdown", action="store_true", help="as a Markdown table")
    sys.stdout.write(method_table(markdown=parser.parse_args(arguments).markdown) + "\n")
