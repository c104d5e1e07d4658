"""lm-eval's harness for real, where the extra is installed, on tasks from local files."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from schemas.errors import InputError
from steps.verify.folder_model import FolderModel
from steps.verify.generate import open_tokenizer
from steps.verify.tasks import measure_tasks, open_tasks, read_questions

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="the extra lm-eval is not installed"),
    pytest.mark.filterwarnings("default"),  # theirs
]
TASKS = Path(__file__).parents[2] / "support" / "tasks"
QUESTIONS, YAML = TASKS / "python_words.jsonl", TASKS / "python_words.yaml"
DEMO = Path(__file__).parents[3] / "pipelines" / "demo" / "model"


def by_hand(folder: Path) -> float:
    """Share of questions whose likeliest choice, by the sum of its tokens' log-probabilities, is the answer."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer, right = open_tokenizer(folder), 0
    questions = read_questions(QUESTIONS)
    for each in questions:
        scores = [continued(model, tokenizer, each["question"], f" {choice}") for choice in each["choices"]]
        right += scores.index(max(scores)) == each["answer"]
    return right / len(questions)


@torch.no_grad()
def continued(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    start, ids = len(tokenizer(context)["input_ids"]), torch.tensor([tokenizer(context + continuation)["input_ids"]])
    log_p_SV = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return float(log_p_SV.gather(1, ids[0, 1:, None])[start - 1 :].sum())


def test_the_harness_finds_what_log_probabilities_say() -> None:
    """The demo's original stands for a packed folder: both forms of the task, beside itself, against our own sums."""
    found = measure_tasks(DEMO, (str(QUESTIONS), str(YAML)), FolderModel(DEMO), "cpu")
    assert set(found) == {"python_words", "python_words_yaml"}
    for facts in found.values():
        assert facts["samples"] == 12 and facts["mixed"] == facts["original"]
        assert facts["mixed"]["acc"]["value"] == pytest.approx(by_hand(DEMO))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_tasks_that_do_not_open(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("task: broken\ndataset_path: json\ndataset_kwargs: {data_files: {test: absent.jsonl}}\n")
    for name in (str(broken), str(tmp_path / "absent.yaml"), "no_such_task"):
        with pytest.raises(InputError, match="lm-eval cannot open the task"):
            open_tasks([name])
    shutil.copy(QUESTIONS, tmp_path / "python_words.jsonl")
    with pytest.raises(InputError, match="a task is there twice"):
        open_tasks([str(QUESTIONS), str(tmp_path / "python_words.jsonl")])
