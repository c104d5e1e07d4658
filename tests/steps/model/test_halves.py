"""Half a block against the whole one, in every supported architecture."""

from __future__ import annotations

import pytest
import torch
from models import FAMILIES, tiny_tokens, tiny_value

from steps.model.halves import run_halves, second_half
from steps.model.stream import Stream
from steps.model.swap import run_swapped


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_second_half_goes_on_where_attention_ended(family: str) -> None:
    stream = Stream(tiny_value(family))
    block, hidden_NSD = stream.block(1), stream.embed(tiny_tokens().tensors["ids_NS"])
    middle_NSD, out_NSD = run_halves(stream, block, hidden_NSD)
    assert torch.equal(out_NSD, stream.run(block, hidden_NSD))
    assert torch.equal(second_half(block, middle_NSD, {}), out_NSD)
    inside = [name for name, weight in block.named_parameters() if name.startswith("mlp.") and weight.ndim == 2]
    for name in inside[-2:]:
        weights = {name: block.get_parameter(name) * 1.5}
        whole_NSD = run_swapped(stream, block, hidden_NSD, weights)
        assert torch.equal(second_half(block, middle_NSD, weights), whole_NSD)
        assert not torch.equal(whole_NSD, out_NSD)
