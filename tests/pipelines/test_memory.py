"""What pre-flight says of memory: the largest block, unless a step is asked for that holds the whole model."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from builds import open_build
from models import tiny_config, tiny_tokens

from pipelines import preflight
from pipelines.memory import memory, scratch
from pipelines.preflight import check
from schemas.errors import InputError
from schemas.quantize import Quantize
from schemas.structure import expected_shapes
from steps.model.offers import offers
from steps.model.positions import batches
from steps.model.stream import Stream
from steps.sensitivity.backward import backward
from steps.step import Env
from steps.verify.loading import BY_BLOCKS, whole_bytes

BOUNDED: dict[str, Any] = {"sensitivity": "fisher", "distill": None, "samples": 1}


def foretold(folder: Path, blocks: int, **changes: Any) -> tuple[int, int]:
    """Of a model 2,048 wide, of which only the shapes are known; and what it takes whole in fp32."""
    recipe = open_build(folder, **{**BOUNDED, **changes}).recipe
    sizes = {"hidden_size": 2048, "intermediate_size": 5632, "head_dim": 128, "num_hidden_layers": blocks}
    config = tiny_config(num_attention_heads=16, num_key_value_heads=16, vocab_size=300, tied=True, **sizes)
    shapes = expected_shapes(config, "shapes")
    spec = recipe.nodes["candidates"].spec
    assert isinstance(spec, Quantize)
    return memory(recipe, offers(config, shapes, spec), {"config": config, "shapes": shapes}), whole_bytes(shapes)


def test_memory_by_blocks_does_not_grow_with_the_number_of_blocks(tmp_path: Path) -> None:
    few, many = (foretold(tmp_path / f"{n}", n, load="blocks") for n in (4, 40))
    assert few[0] == many[0] < many[1] / 3


@pytest.mark.parametrize(
    ("changes", "times"), [({"load": "whole"}, 1.5), ({"load": "blocks", "sensitivity": "kl_probe"}, 2.0)]
)
def test_a_step_that_holds_the_model_is_counted(tmp_path: Path, changes: dict[str, Any], times: float) -> None:
    needed, whole = foretold(tmp_path, 40, **changes)
    assert needed > times * whole


def test_codes_are_chosen_again_within_one_block_and_one_batch(tmp_path: Path) -> None:
    few, many = (
        foretold(tmp_path / f"{n}", 40, load="blocks", distill={"method": "recode", "recode": {"windows": n}})[0]
        for n in (96, 960)
    )
    text = 4 * (960 - 96) * 32 * 2048
    assert 0 < many - few < 3 * text  # fp32, windows of 32: once what enters a block, once what leaves it
    alone = foretold(tmp_path / "none", 40, load="blocks", **BOUNDED)[0]
    one = foretold(tmp_path / "one", 40, load="blocks", **BOUNDED | {"distill": {"method": "recode"}})[0]
    blocks = foretold(tmp_path / "more", 80, load="blocks", **BOUNDED | {"distill": {"method": "recode"}})[0]
    assert alone <= one == blocks


def test_auto_is_whole_up_to_a_billion_weights(tmp_path: Path) -> None:
    small, large = (foretold(tmp_path / f"{n}", n, load="auto") for n in (20, 21))
    assert small[1] < 4 * 2**30 < large[1] and large[0] < small[0]


def test_what_is_left_out_is_said_before_anything_runs(tmp_path: Path) -> None:
    notes = check(open_build(tmp_path / "blocks", load="blocks", **BOUNDED)).notes
    assert any(note.startswith(f"verdict: speed is not measured, {BY_BLOCKS}") for note in notes)
    assert any(note.startswith(f"generations: nothing is generated, {BY_BLOCKS}") for note in notes)
    assert not any(BY_BLOCKS in note for note in check(open_build(tmp_path / "whole", **BOUNDED)).notes)


def test_scratch_is_what_enters_every_block(tmp_path: Path) -> None:
    """As a backward pass was seen to put it aside."""
    build = open_build(tmp_path, **BOUNDED)
    model = build.runner.source("model")
    tokens = tiny_tokens(build.recipe.nodes["scoring"].spec.windows, build.recipe.nodes["scoring"].spec.length)  # type: ignore[union-attr]
    with closing(backward(Stream(model), list(batches(tokens, 8)), 1, 0, Env(scratch=tmp_path))) as started:
        next(started)
        used = sum(path.stat().st_size for path in tmp_path.glob("tmp*/*.safetensors"))
    assert used == pytest.approx(scratch(build.recipe, model.meta), rel=0.01)  # headers are not counted


def test_a_disk_without_room_for_it_is_said_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = open_build(tmp_path, **BOUNDED)
    monkeypatch.setattr(preflight, "scratch", lambda *of: 1 << 60)
    with pytest.raises(InputError, match="not enough room for what enters each block") as refused:
        check(build)
    assert str(build.where.cache) in str(refused.value)
    check(build, here=False)
