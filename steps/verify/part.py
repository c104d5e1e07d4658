"""A part of a model that is a model of its own: one block, or what is outside of all blocks. Torch-free.

A block's part has a vocabulary of one token, whose tied embedding is zeros, and the model's own final norm; the other
part has the model's vocabulary and no block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.mixture import MIXTURES, is_sparse
from schemas.structure import EMBEDDING, FINAL_NORM, HEAD
from steps.model.structure import IN_BLOCKS, block_prefix

AROUND = (EMBEDDING, FINAL_NORM, HEAD)
"""What a block's part has beside the block."""


@dataclass(frozen=True)
class Part:
    """Decoder block `block`, or with None the embedding, the final norm and the head."""

    block: int | None

    @property
    def title(self) -> str:
        """For people."""
        return "ends" if self.block is None else f"block-{self.block}"

    def holds(self, name: str) -> bool:
        """Whether a parameter, a module or a stored tensor of the model belongs to this part."""
        return not name.startswith(IN_BLOCKS) if self.block is None else name.startswith(block_prefix(self.block))

    def inside(self, name: str) -> str:
        """What the part calls something that it holds."""
        return name if self.block is None else block_prefix(0) + name.removeprefix(block_prefix(self.block))

    def names(self, all_names: Mapping[str, Any]) -> dict[str, str]:
        """Name in the model -> name in the part, of all that it holds."""
        return {name: self.inside(name) for name in all_names if self.holds(name)}

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """config.json of the part, without a `quantization_config`."""
        plain = {key: value for key, value in config.items() if key != "quantization_config"}
        kinds = _layer_types(plain)
        if self.block is None:
            return plain | {"num_hidden_layers": 0} | ({} if kinds is None else {"layer_types": []})
        ends = {"vocab_size": 1, "tie_word_embeddings": True, "pad_token_id": None}
        one = plain | ends | {"num_hidden_layers": 1} | ({} if kinds is None else {"layer_types": [kinds[self.block]]})
        if config["model_type"] in MIXTURES:
            one |= {"mlp_only_layers": [] if is_sparse(config, self.block) else [0], "decoder_sparse_step": 1}
        return one


def _layer_types(config: Mapping[str, Any]) -> list[str] | None:
    """The kind of attention of every block as transformers reads the config; None for families of a single kind."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    built = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    found: list[str] | None = getattr(built, "layer_types", None)
    return found
