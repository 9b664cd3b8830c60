"""Which options of a command go together; what a parser alone cannot say."""

from __future__ import annotations

import argparse

MAKES = {"weights", "input_px", "pca", "with_photometry", "space", "sha256", "random_seed", "part_rows"}
TABLE = {"encoder", "generation", "part_rows"}
TAKES = {  # what a step or a runner uses of its command's options; another one would be silently ignored
    "embed": {
        "--part": {"batch_size", "device"},
        "--task": {"batch_size", "device"},
        "--commit": {"runner"},
        "--plan": MAKES | {"task_parts"},
        "--runner local": MAKES | {"batch_size", "device"},
        "--runner ray": MAKES | {"batch_size", "runner"},
        "--runner slurm": MAKES | {"slurm", "gpu", "task_parts", "runner"},
    },
    "ingest": {
        "--part": set(),
        "--task": set(),
        "--commit": {"runner"},
        "--plan": {"update", "part_rows", "task_parts"},
        "--runner local": {"update", "part_rows", "processes"},
        "--runner ray": {"update", "part_rows", "runner"},
        "--runner slurm": {"update", "part_rows", "task_parts", "slurm", "runner"},
    },
    "index": {
        "--part": set(),
        "--task": set(),
        "--commit": {"runner"},
        "--plan": {"memory", "recall", "part_rows", "task_parts"},
        "--runner local": {"memory", "recall", "part_rows", "processes"},
        "--runner ray": {"memory", "recall", "part_rows", "runner"},
        "--runner slurm": {"memory", "recall", "part_rows", "task_parts", "slurm", "runner"},
    },
    **{
        command: {
            "--part": set(),
            "--task": set(),
            "--commit": {"runner"},
            "--plan": TABLE | {own, "task_parts"},
            "--runner local": TABLE | {own, "processes"},
            "--runner ray": TABLE | {own, "runner"},
            "--runner slurm": TABLE | {own, "task_parts", "slurm", "runner"},
        }
        for command, own in (("neighbours", "k"), ("redshift", "estimator"))
    },
}


def _check_steps(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    takes = TAKES[arguments.command]
    step = next((f"--{name}" for name in ("part", "task") if getattr(arguments, name) is not None), None)
    step = step or ("--plan" if arguments.plan else "--commit" if arguments.commit else f"--runner {arguments.runner}")
    plain = {"runner": "local", "space": "trunk", "with_photometry": False, "update": False}
    for name in set().union(*takes.values()) - takes[step]:
        if getattr(arguments, name) != plain.get(name):
            parser.error(f"{arguments.command} {step} does not use --{name.replace('_', '-')}")
    if step == "--runner slurm" and arguments.slurm is None:
        parser.error("--runner slurm needs --slurm FILE, settings like deploy/slurm/jeanzay.toml")
    if step == "--commit" and arguments.runner == "ray":
        parser.error(f"{arguments.command} --commit does not use --runner ray")


def _check_question(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    position = None not in (arguments.ra, arguments.dec)
    if (arguments.ra is None) != (arguments.dec is None):
        parser.error("--ra and --dec go together")
    others = (arguments.source_id, arguments.cutout, arguments.text, arguments.like or None)
    if sum(other is not None for other in others) + position != 1:
        parser.error("ask about exactly one of --id, --ra with --dec, --cutout, --text and --like")
    of_cutout = {"bands": None, "unit": "uJy", "pixel_scale_arcsec": None, "ebv": None}
    for name, usual in of_cutout.items():
        if arguments.cutout is None and getattr(arguments, name) != usual:
            parser.error(f"--{name.replace('_', '-')} goes with --cutout")
    if arguments.unlike and not arguments.like:
        parser.error("--unlike goes with --like")
    if arguments.estimator and (arguments.like or arguments.text is not None):
        parser.error("--estimator is of one galaxy's redshift, and does not go with --like or --text")
    if arguments.json and arguments.estimator:
        parser.error("--json prints the neighbours alone, and --estimator is of the redshift")


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with the parser's error, exit status 2, where options do not go together or one would be ignored."""
    if hasattr(arguments, "source_id"):
        _check_question(parser, arguments)
    if arguments.command in TAKES:
        _check_steps(parser, arguments)
