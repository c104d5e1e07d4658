"""What the original and the packed model write after the same prompts: for reading, not for judging.

N samples, S prompt tokens, G generated tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from schemas.errors import InputError
from schemas.verify import Generate
from steps.model.structure import max_length
from steps.step import Env, Output, Value
from steps.verify.load_packed import folder_of, in_float32, load
from steps.verify.loaders import load_original
from steps.verify.loading import BY_BLOCKS, asked

NOTHING = f"nothing was generated, {BY_BLOCKS}"


@torch.no_grad()
def run(spec: Generate, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """`generations`: per sample the prompt and what each model adds, as text. Greedy, in fp32, one model at a time.

    None, and a note that says why, where the model is not to be loaded whole.
    """
    if asked(spec, inputs["model"].meta["shapes"]) == "blocks":
        return {"generations": Output(meta={"generations": [], "notes": [NOTHING]})}
    model, limit = inputs["model"], max_length(inputs["model"].meta["config"])
    new = min(spec.tokens, limit - 1)
    prompt_NS = prompts(inputs["tokens"], spec.samples, min(spec.prompt, limit - new))
    ends = end_tokens(model.meta["config"])
    original = greedy(in_float32(load_original(model)).to(env.device), prompt_NS, new, ends)
    packed = load(folder_of(inputs["packed"].files, env.scratch / "packed"), env.device)
    mixed = greedy(in_float32(packed), prompt_NS, new, ends)
    tokenizer = open_tokenizer(folder_of(model.files, env.scratch / "original"))
    columns = {"prompt": prompt_NS.tolist(), "original": original, "mixed": mixed}
    texts = {name: [_text(tokenizer, ids) for ids in rows] for name, rows in columns.items()}
    samples = [dict(zip(texts, row, strict=True)) for row in zip(*texts.values(), strict=True)]
    return {"generations": Output(meta={"generations": samples})}


def prompts(tokens: Value, samples: int, length: int) -> torch.Tensor:
    """The first tokens of the first windows that have `length` of them, the longest if there are too few; one shape."""
    length_N = tokens.tensors["lengths_N"].tolist()
    order = sorted(range(len(length_N)), key=lambda n: (-min(length_N[n], length), n))[:samples]
    longest = min(length, *(length_N[n] for n in order))
    return tokens.tensors["ids_NS"][order, :longest].long()


def greedy(model: Any, prompt_NS: torch.Tensor, count: int, ends: frozenset[int]) -> list[list[int]]:
    """The `count` likeliest next tokens of each prompt, one after another; a row stops before an end token."""
    token_NS, cache, steps = prompt_NS.to(model.device), None, []
    for _ in range(count):
        out = model(input_ids=token_NS, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token_NS, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
        steps.append(token_NS)
    return [_until(row, ends) for row in torch.cat(steps, dim=1).tolist()]


def _until(ids: list[int], ends: frozenset[int]) -> list[int]:
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return ids[:stop]


def end_tokens(config: Mapping[str, Any]) -> frozenset[int]:
    """Ids after which a text of this model is over."""
    named = config.get("eos_token_id")
    return frozenset(named if isinstance(named, list) else [] if named is None else [named])


def open_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer of a folder. InputError when there is none that loads."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever its parser met
        raise InputError(
            "the tokenizer does not load",
            where=str(folder),
            got=f"{type(error).__name__}: {error}",
            wanted="tokenizer.json, or another tokenizer that transformers loads",
            fix="put the tokenizer's files into the model's folder",
        ) from error


def _text(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
