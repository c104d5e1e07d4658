"""`python -m steps.verify FOLDER`: check a packed folder, and measure it, with the model's own libraries alone.

Needs torch, transformers, safetensors and pydantic (and triton on a GPU); nothing that builds. For a folder in
compressed-tensors format that library is used when it is there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from schemas.errors import InputError
from steps.device import device_of
from steps.verify.options import LOAD_HELP, LOADINGS, check_options, split
from steps.verify.show import lines


def parser() -> argparse.ArgumentParser:
    """All options."""
    found = argparse.ArgumentParser(prog="python -m steps.verify", description="Check and measure a packed folder.")
    found.add_argument("folder", type=Path)
    found.add_argument("--model", type=Path, help="folder of the original model: measure against it")
    found.add_argument("--text", type=Path, help="text to measure on: JSONL, or plain text")
    found.add_argument("--length", type=int, default=256, help="tokens per window (256)")
    found.add_argument("--windows", type=int, default=128, help="windows at most (128)")
    found.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    found.add_argument("--engine", choices=("transformers", "llama.cpp"), default="transformers", help="what runs it")
    found.add_argument("--load", choices=LOADINGS, default="auto", help=LOAD_HELP)
    found.add_argument("--tasks", type=split, default=(), metavar="FILE_OR_NAME,...", help="lm-eval tasks to run")
    found.add_argument("--limit", type=int, help="with --tasks: samples of each at most")
    found.add_argument("--json", type=Path, metavar="FILE", help="write what was found as JSON")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when the folder is sound, 2 for bad input and for a folder that is not what was built."""
    options = parser().parse_args(arguments)
    try:
        found = verify(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines(found)))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 0


def verify(options: argparse.Namespace) -> dict[str, Any]:
    """`sound`, the facts of the folder, and with a model and a text `measured`."""
    from steps.verify.integrity import check_folder
    from steps.verify.tasks import check_whole, measure_tasks

    check_options(options)
    found: dict[str, Any] = {"sound": asdict(check_folder(options.folder))}
    if options.tasks:
        check_whole(options.folder, options.load)
    if options.text is not None:
        found["measured"] = _measure(options)
    if options.tasks:
        from steps.verify.folder_model import FolderModel

        model = None if options.model is None else FolderModel(options.model)
        device = device_of(options.device)
        found["tasks"] = measure_tasks(options.folder, options.tasks, model, device, options.limit)
    return found


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    from steps.step import Env
    from steps.verify.folder import measure_folder, tokens_of
    from steps.verify.folder_model import FolderModel, read_text

    with tempfile.TemporaryDirectory(prefix="bitsmith-verify-") as scratch:
        env = Env(device=device_of(options.device), scratch=Path(scratch))
        model = FolderModel(options.model)
        tokens = tokens_of(model, read_text(options.text, env.scratch), options.length, options.windows, env)
        return measure_folder(options.folder, model, tokens, env, engine=options.engine, load=options.load)


if __name__ == "__main__":
    sys.exit(main())
