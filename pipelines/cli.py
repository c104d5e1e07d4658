"""The command line. Heavy libraries are imported inside the commands that need them, so that `--help` is instant."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipelines.interrupts import end_at_once, heeded
from pipelines.options import number, seconds
from schemas.calibrate import LEAST_LENGTH
from schemas.errors import InputError
from steps.verify.options import LOAD_HELP, LOADINGS, split
from store.errors import Unavailable, lost

EXIT_GATES, EXIT_INPUT, EXIT_INTERRUPTED = 1, 2, 130

COMMANDS: Mapping[str, tuple[str, str]] = {
    "run": ("pipelines.commands.run", "run"),
    "sweep": ("pipelines.commands.sweep", "sweep"),
    "plan": ("pipelines.commands.plan", "plan"),
    "explain": ("pipelines.commands.explain", "explain"),
    "latency": ("pipelines.commands.latency", "latency"),
    "builds": ("pipelines.commands.builds", "builds"),
    "pin": ("pipelines.commands.builds", "pin"),
    "unpin": ("pipelines.commands.builds", "unpin"),
    "promote": ("pipelines.commands.builds", "promote"),
    "fsck": ("pipelines.commands.fsck", "check_store"),
    "prune": ("pipelines.commands.prune", "prune_store"),
    "lineage": ("pipelines.commands.lineage", "lineage"),
    "verify": ("pipelines.commands.verify", "verify"),
    "reproduce": ("pipelines.commands.reproduce", "reproduce"),
    "ui": ("pipelines.commands.ui", "ui"),
    "up": ("pipelines.commands.services", "start"),
    "down": ("pipelines.commands.services", "end"),
    "status": ("pipelines.commands.services", "status"),
}
"""Command -> module and function (options -> exit code), imported when the command is given."""


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    top = argparse.ArgumentParser(prog="bitsmith", description="Build compressed language models from recipes.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str, *, recipe: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        if recipe:
            sub.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
            sub.add_argument(
                "--set",
                action="append",
                default=[],
                metavar="FIELD=VALUE",
                help="override a field, e.g. budget.bytes=4000000",
            )
            sub.add_argument(
                "--tracking",
                metavar="URI",
                help="MLflow tracking URI (default: the running services, else sqlite in the state folder)",
            )
        sub.add_argument("--store", metavar="URL", help="store of artifacts, any fsspec URL (default: .bitsmith/store)")
        return sub

    run = command("run", "build a recipe: compute what is not cached, pack, verify, report", recipe=True)
    run.add_argument("--json", metavar="FILE", type=Path, help="write the build report as JSON")
    sweep = command("sweep", "build a recipe at several budgets and draw the front of size against KL", recipe=True)
    sweep.add_argument("--bits", metavar="LIST", required=True, help="budgets in bits per weight, e.g. 2.5,3,3.5")
    sweep.add_argument("--over", choices=("linears", "file"), default="linears", help="which weights (linears)")
    sweep.add_argument("--metrics", metavar="LIST", default="", help="also plan by these metrics, or by `all`")
    number(sweep, "--random", 0, most=1000, default=0, help="also measure N random plans per budget (0)")
    sweep.add_argument("--json", metavar="FILE", type=Path, help="write the list of build reports as JSON")
    for each in (run, sweep):
        each.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
        each.add_argument("--runner", choices=("dask", "ray"), help="where tasks run (default: in this process)")
        where = "of a running cluster: tcp://HOST:PORT of Dask, ray://HOST:PORT of Ray"
        each.add_argument("--scheduler", metavar="URL", help=where)
        number(each, "--workers", 1, help="with --runner: processes of this machine (2)")
    plan = command("plan", "check a recipe and show what would run, without running it", recipe=True)
    plan.add_argument("--json", metavar="FILE", type=Path, help="write the plan as JSON")
    explain = command("explain", "say why nodes are cached or have to run", recipe=True)
    explain.add_argument("node", nargs="?", help="a node of the recipe (default: all)")
    _latency_command(command("latency", "measure how long linears take in each format, for a latency budget"))
    _store_commands(command)
    page = command("ui", "show a store's builds in a browser, on 127.0.0.1")
    number(page, "--port", 0, most=65535, default=8484, help="8484; 0 for any that is free")
    commands.add_parser("up", help="start Prefect server and worker, MLflow and the page on 127.0.0.1")
    commands.add_parser("down", help="stop what `up` started")
    commands.add_parser("status", help="say which services run")
    return top


def _store_commands(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Commands that look after a store and what came out of it."""
    digest = "a packed folder or a file in it, or the beginning of any digest"
    command("builds", "list the recorded builds and pins")
    for name, help in (("pin", "keep a build or artifact under a name"), ("unpin", "drop a pin")):
        pin = command(name, help)
        pin.add_argument("name")
        if name == "pin":
            pin.add_argument("digest", help="of a build or an artifact; the beginning of it will do")
    promote = command("promote", "make a build the champion of its recipe; prune keeps it")
    promote.add_argument("digest", help="the build's; the beginning of it will do")
    promote.add_argument("--undo", action="store_true", help="take that back")
    promote.add_argument("--tracking", metavar="URI", help="MLflow tracking URI, as of `run`")
    fsck = command("fsck", "verify everything in a store; damage goes to quarantine and is made again when needed")
    fsck.add_argument("--json", metavar="FILE", type=Path, help="write what was found as JSON")
    prune = command("prune", "delete what no kept build, no pin and no running build needs")
    number(prune, "--keep-builds", 0, required=True, help="newest builds to keep")
    prune.add_argument("--dry-run", action="store_true", help="only say what would go")
    lineage = command("lineage", "show what something was made from, down to texts and tensors")
    lineage.add_argument("what", metavar="FILE_OR_DIGEST", help=digest)
    number(lineage, "--depth", 0, help="levels to show (default: all)")
    verify = command("verify", "check that a packed folder is what was built, and measure it again")
    verify.add_argument("what", metavar="FOLDER", help="a packed folder, or a file in it")
    verify.add_argument("--model", metavar="SOURCE", help="the original (default: that of the build, if it is known)")
    verify.add_argument("--text", metavar="SOURCE", help="text to measure on, with --model")
    number(verify, "--length", LEAST_LENGTH, default=256, help="with --text: tokens per window (256)")
    number(verify, "--windows", 1, default=128, help="with --text: windows at most (128)")
    verify.add_argument("--engine", choices=("transformers", "llama.cpp"), default="transformers", help="what runs it")
    verify.add_argument("--load", choices=LOADINGS, default="auto", help=LOAD_HELP)
    verify.add_argument("--tasks", metavar="LIST", type=split, default=(), help="lm-eval tasks: YAML, JSONL or names")
    number(verify, "--limit", 1, help="with --tasks: samples of each at most")
    verify.add_argument("--quick", action="store_true", help="check every byte, measure nothing")
    verify.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    verify.add_argument("--json", metavar="FILE", type=Path, help="write what was found as JSON")
    reproduce = command("reproduce", "compute some units of a build again and compare them byte by byte")
    reproduce.add_argument("what", metavar="FILE_OR_DIGEST", help=digest)
    number(reproduce, "--sample", 1, default=5, help="units to compute (5)")
    reproduce.add_argument("--seed", metavar="N", type=int, default=0, help="of the choice of units (0)")
    reproduce.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu")


def _latency_command(sub: argparse.ArgumentParser) -> None:
    """Options of `latency`."""
    sub.add_argument("recipe", nargs="?", help="a YAML file, or the name of a shipped recipe")
    sub.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override a field of the recipe")
    sub.add_argument("--shapes", metavar="LIST", help="instead of a recipe: OUTPUTSxINPUTS, e.g. 4096x4096,14336x4096")
    sub.add_argument("--formats", metavar="LIST", help="with --shapes: formats, e.g. int3-g64,int4-g64")
    sub.add_argument("--pack", choices=("compressed-tensors", "bitsmith"), help="file format whose engine is timed")
    sub.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of activations (the model's own)")
    number(sub, "--tokens", 1, default=1, help="rows of input at once (1: decoding)")
    seconds(sub, "--seconds", default=0.2, help="time to sample each cell for (0.2)")
    sub.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    sub.add_argument("--json", metavar="FILE", type=Path, help="write the table, for budget.latency.table")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns 0, 1 (gates failed, damage or a difference found), 2 (bad input) or 130 (interrupted)."""
    try:
        with heeded():
            return _dispatch(parser().parse_args(arguments))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except BaseException as error:
        return _say(error)
    finally:
        if arguments is None:
            end_at_once()


def _say(error: BaseException) -> int:
    """One message and the exit code for an interrupt or bad input; anything else is raised again.

    Names come from users, in options and in recipes: one that is too long for any disk is bad input, whoever meets it.
    """
    if _interrupted(error):
        print(
            "\ninterrupted; everything finished so far is in the store, run the same command to go on", file=sys.stderr
        )
        return EXIT_INTERRUPTED
    if isinstance(error, Unavailable):
        error = lost(error)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        error = InputError("this name is too long for a file", got=error.filename, fix="give a shorter one")
    if isinstance(error, InputError):
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INPUT
    raise error


def _interrupted(error: BaseException | None) -> bool:
    """Whether an interrupt is behind an error: libraries that are cut off half way may end in another one.

    Prefect has a BaseException of its own for SIGTERM.
    """
    while error is not None:
        if not isinstance(error, Exception | SystemExit | GeneratorExit):
            return True
        error = error.__cause__ or error.__context__
    return False


def _dispatch(options: argparse.Namespace) -> int:
    module, name = COMMANDS[options.command]
    command: Callable[[argparse.Namespace], int] = getattr(importlib.import_module(module), name)
    return command(options)


if __name__ == "__main__":
    sys.exit(main())
