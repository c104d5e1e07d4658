"""What pre-flight says of memory: the largest block, unless a step is asked for that holds the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from builds import open_build
from models import tiny_config

from pipelines.memory import memory
from pipelines.preflight import check
from schemas.quantize import Quantize
from schemas.structure import expected_shapes
from steps.model.offers import offers
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


def test_what_enters_every_block_is_counted_where_codes_are_chosen_again(tmp_path: Path) -> None:
    few, many = (
        foretold(tmp_path / f"{n}", 40, load="blocks", distill={"method": "recode", "recode": {"windows": n}})[0]
        for n in (96, 960)
    )
    assert many - few > 0.5 * 4 * (960 - 96) * 32 * 2048 * 42  # fp32, windows of 32, and what leaves the last block


def test_auto_is_whole_up_to_a_billion_weights(tmp_path: Path) -> None:
    small, large = (foretold(tmp_path / f"{n}", n, load="auto") for n in (20, 21))
    assert small[1] < 4 * 2**30 < large[1] and large[0] < small[0]


def test_what_is_left_out_is_said_before_anything_runs(tmp_path: Path) -> None:
    notes = check(open_build(tmp_path / "blocks", load="blocks", **BOUNDED)).notes
    assert any(note.startswith(f"verdict: speed is not measured, {BY_BLOCKS}") for note in notes)
    assert any(note.startswith(f"generations: nothing is generated, {BY_BLOCKS}") for note in notes)
    assert not any(BY_BLOCKS in note for note in check(open_build(tmp_path / "whole", **BOUNDED)).notes)
