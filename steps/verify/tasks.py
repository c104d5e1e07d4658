"""Tasks of lm-eval's harness (0.4) on a packed folder, and on its original, from local files without a network.

A task is lm-eval's own YAML, JSONL of multiple-choice questions, or the name of a task that ships with lm-eval (whose
data must be in the datasets library's cache, or be fetched). YAML may name Python functions, which lm-eval then runs.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from schemas.errors import InputError
from schemas.verify import WHOLE_BYTES, Loading
from steps.pack.manifest import read_manifest
from steps.step import Value
from steps.verify.generate import open_tokenizer
from steps.verify.load_packed import in_float32, load, quiet
from steps.verify.loaders import load_original
from steps.verify.loading import resolve

BATCH = 8
"""Continuations that the harness runs at once."""
QUESTION = {"question": str, "choices": list, "answer": int}
"""Fields of a line of JSONL; `answer` counts choices from 0."""


def measure_tasks(
    folder: Path, names: Sequence[str], model: Value | None, device: str, limit: int | None = None
) -> dict[str, Any]:
    """Task -> `samples`, and `mixed` (with `model` also `original`): metric -> value and standard error; JSON.

    Both models compute in fp32, as everywhere in verify, and one after the other. `limit` is the most samples per task.
    Both are loaded whole, whatever their size: see `check_whole`.
    """
    tasks, tokenizer = open_tasks(names), open_tokenizer(folder)
    runs = {"mixed": _evaluate(load(folder, device), tokenizer, tasks, device, limit)}
    if model is not None:
        runs["original"] = _evaluate(load_original(model), tokenizer, tasks, device, limit)
    found: dict[str, Any] = {}
    for name in tasks:
        metrics = {run: _metrics(result["results"][name]) for run, result in runs.items()}
        found[name] = {"samples": int(runs["mixed"]["n-samples"][name]["effective"]), **metrics}
    return found


def check_whole(folder: Path, load_as: Loading) -> None:
    """InputError for a packed folder that is not to be loaded whole: tasks run it from end to end, over and over."""
    told = read_manifest(folder)
    weights = round(8 * told["bytes"]["actual"] / told["bpw"]["total"])
    if resolve(load_as, WHOLE_BYTES, {"all": (weights,)}) == "blocks":
        raise InputError(
            "tasks need the whole model in memory",
            where="--tasks",
            got=f"--load {load_as}, and {4 * weights:,} bytes in fp32",
            wanted=f"at most {WHOLE_BYTES:,} bytes, or --load whole",
            fix="say --load whole on a machine with that memory, or leave --tasks out",
        )


def open_tasks(names: Sequence[str]) -> dict[str, Any]:
    """lm-eval's task objects by name. InputError for a file that is none, a name that is unknown or is there twice."""
    found: dict[str, Any] = {}
    for name in names:
        for task, opened in _open(name).items():
            if task in found:
                raise InputError("a task is there twice", where="--tasks", got=task, fix="name it once")
            found[task] = opened
    return found


def _open(name: str) -> Mapping[str, Any]:
    from lm_eval.tasks import TaskManager

    path = Path(os.path.expanduser(name))
    if path.suffix in (".jsonl", ".ndjson"):
        return {path.stem: _questions_task(path.stem, read_questions(path))}
    is_file = path.suffix in (".yaml", ".yml")
    try:
        with (
            quiet(),
            contextlib.chdir(path.parent if is_file else Path()),
        ):  # data files are named relative to their task
            manager = TaskManager(include_defaults=not is_file)
            tasks: Mapping[str, Any] = manager.load(path.name if is_file else name)["tasks"]
            return tasks
    except Exception as error:  # the harness and the datasets library raise whatever they met
        raise InputError(
            "lm-eval cannot open the task",
            where=f"--tasks {name}",
            got=f"{type(error).__name__}: {error}",
            wanted="a YAML file of lm-eval, JSONL with question, choices and answer, or the name of a task it ships",
            fix="run `lm-eval validate --tasks FILE`; data that is to be fetched needs a network",
        ) from error


def _questions_task(name: str, questions: Sequence[Mapping[str, Any]]) -> Any:
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask

    data = DatasetDict({"test": Dataset.from_list(list(questions))})
    config = {
        "task": name,
        "custom_dataset": lambda **_: data,
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "question",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
    }
    with quiet():
        return ConfigurableTask(config=config)


def read_questions(path: Path) -> list[dict[str, Any]]:
    """Lines of `question`, `choices` and `answer`; InputError that names the first line which is not one."""
    found = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError("the questions cannot be read", where=str(path), got=error, fix="give a JSONL file") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            found.append(_question(line, f"{path}:{number}"))
    if not found:
        raise InputError("no questions", where=str(path), wanted="one JSON object per line", fix="give another file")
    return found


def _question(line: str, where: str) -> dict[str, Any]:
    try:
        read = json.loads(line)
    except ValueError:
        read = None
    fields = read if isinstance(read, dict) else {}
    right = all(type(fields.get(name)) is kind for name, kind in QUESTION.items())
    if not right or len(fields["choices"]) < 2 or not 0 <= fields["answer"] < len(fields["choices"]):
        raise InputError(
            "not a multiple-choice question",
            where=where,
            got=line[:120],
            wanted='{"question": TEXT, "choices": [TEXT, TEXT, ...], "answer": number of the right one, from 0}',
            fix="mend this line",
        )
    return {name: fields[name] for name in QUESTION}


def _evaluate(model: Any, tokenizer: Any, tasks: Mapping[str, Any], device: str, limit: int | None) -> Any:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    with quiet():
        wrapped = HFLM(pretrained=in_float32(model).to(device), tokenizer=tokenizer, batch_size=BATCH)
        return simple_evaluate(wrapped, tasks=list(tasks.values()), limit=limit, log_samples=False)


def _metrics(result: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Of lm-eval's flat `acc,none` and `acc_stderr,none`."""
    return {name: {"value": value, "stderr": error} for name, value, error in _pairs(result)}


def _pairs(result: Mapping[str, Any]) -> Iterator[tuple[str, float, float | None]]:
    for key, value in result.items():
        metric, comma, kept = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            error = result.get(f"{metric}_stderr,{kept}")
            yield metric, float(value), float(error) if isinstance(error, int | float) else None
