"""A causal language model run block by block in fp32, with at most one block's weights resident.

The modules are those of transformers, so that what is computed here is what the model's own code computes. Nothing here
turns gradients off: a caller that wants none says `torch.no_grad()`.

N windows, S positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Self

import torch
from torch import nn

from schemas.errors import InputError
from schemas.mixture import mixture
from schemas.structure import EMBEDDING, FINAL_NORM, HEAD
from steps.model.experts import unfuse
from steps.model.structure import block_prefix, check_supported, max_length
from steps.step import Value

# Old Llama checkpoints store the rotary frequencies, which follow from the configuration.
DERIVED = ("self_attn.rotary_emb.inv_freq",)


class Stream:
    """The parts of a decoder, loaded when asked for.

    Weights are copied to fp32, so a module lent out may be trained without touching the model's tensors. Attention is
    causal and has no padding mask: what stands right of a position never reaches it, so right padding is harmless.
    On one machine equal inputs give equal bytes. Measured with MKL on 1 to 8 CPU threads: attention and norms are
    bit-equal, and so are products whose widths are multiples of 16; MKL_CBWR=AVX2,STRICT makes every product so.
    Another device, instruction set, batch or padded length may sum in another order and change the last bits.
    """

    def __init__(self, model: Value, device: str = "cpu") -> None:
        self._tensors = model.tensors
        self._where = str(model.meta.get("name", "model"))
        self.device = torch.device(device)
        self.settings: dict[str, Any] = dict(model.meta["config"])
        check_supported(self.settings, self._where)
        self._skeleton = _skeleton(self.settings, self._where)
        self.config = self._skeleton.config
        """The configuration object of transformers."""
        self.blocks = int(self.config.num_hidden_layers)
        self.tied = bool(self.config.tie_word_embeddings)
        # Made on the CPU, not with the skeleton: its frequencies are buffers that no checkpoint stores.
        self._rotary = type(self._skeleton.model.rotary_emb)(self.config).to(self.device)
        self._held_VD: torch.Tensor | None = None

    def hold_table(self) -> Self:
        """Keep the embedding as it is stored: else every `embed` reads it from the store, and checks all of it."""
        self._held_VD = self._stored_table()
        return self

    def _stored_table(self) -> torch.Tensor:
        return self._shaped(EMBEDDING, tuple(self._skeleton.model.embed_tokens.weight.shape))

    def embed(self, ids_NS: torch.Tensor) -> torch.Tensor:
        """hidden_NSD fp32, by the table that is held or where it lies; InputError for an id outside it."""
        table_VD = self._stored_table() if self._held_VD is None else self._held_VD
        ids_T = ids_NS.reshape(-1).long().cpu()
        if ids_T.numel() and not 0 <= int(ids_T.min()) <= int(ids_T.max()) < len(table_VD):
            got = f"ids from {int(ids_T.min())} to {int(ids_T.max())}"
            wanted = f"ids from 0 to {len(table_VD) - 1}"
            raise InputError("token ids outside the vocabulary", where=self._where, got=got, wanted=wanted)
        rows_TD = self._finite(EMBEDDING, table_VD[ids_T].float())
        return rows_TD.view(*ids_NS.shape, -1).to(self.device)

    def table_VD(self) -> torch.Tensor:
        """The whole embedding in fp32; a copy at each call."""
        return self._load(EMBEDDING, (self.config.vocab_size, self.config.hidden_size))

    def block(self, k: int) -> nn.Module:
        """Decoder block k with fp32 weights, in eval mode, no gradients asked for; a fresh copy at each call.

        Raises InputError for a parameter that is missing, of another shape, not finite, or unknown to the block.
        """
        with torch.device("meta"):
            module: nn.Module = type(self._skeleton.model.layers[k])(self.config, k)
            if (found := mixture(self.settings, k)) is not None:
                unfuse(module, found)
        prefix = block_prefix(k)
        wanted = {name: tuple(p.shape) for name, p in module.named_parameters()}
        self._refuse_strangers(prefix, set(wanted))
        weights = {name: self._load(prefix + name, shape) for name, shape in wanted.items()}
        module.load_state_dict(weights, assign=True)
        return module.eval().requires_grad_(False)

    def arguments(self, hidden_NSD: torch.Tensor) -> dict[str, Any]:
        """Keyword arguments of a block beside `hidden_NSD`: rotary (cos, sin), and no mask, which means causal."""
        length, limit = hidden_NSD.shape[1], max_length(self.settings)
        if length > limit:
            raise InputError(
                "windows are longer than the model attends to",
                where=self._where,
                got=f"{length} tokens",
                wanted=f"at most {limit}",
                fix="set a smaller `length` on the tokenize node",
            )
        positions_1S = torch.arange(length, device=hidden_NSD.device)[None]
        return {"position_embeddings": self._rotary(hidden_NSD, positions_1S), "attention_mask": None}

    def run(self, block: nn.Module, hidden_NSD: torch.Tensor) -> torch.Tensor:
        """The block's output hidden_NSD; the input must be on the stream's device."""
        out_NSD: torch.Tensor = block(hidden_NSD, **self.arguments(hidden_NSD))
        return out_NSD

    def final(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final-normed hidden states [..., D]; pointwise, so valid positions may be picked before it."""
        normed: torch.Tensor = self.norm(hidden)
        return normed

    def logits(self, normed: torch.Tensor, head_VD: torch.Tensor | None = None) -> torch.Tensor:
        """fp32 logits [..., V] of final-normed hidden states [..., D], by the model's own head or the one given; also
        within autocast."""
        with torch.autocast(self.device.type, enabled=False):
            return nn.functional.linear(normed, self.head_VD if head_VD is None else head_VD)

    @cached_property
    def norm(self) -> nn.Module:
        """The final norm, kept once loaded."""
        with torch.device("meta"):
            module: nn.Module = type(self._skeleton.model.norm)(self.config.hidden_size, self.config.rms_norm_eps)
        module.load_state_dict({"weight": self._load(FINAL_NORM, (self.config.hidden_size,))}, assign=True)
        return module.eval().requires_grad_(False)

    @cached_property
    def head_VD(self) -> torch.Tensor:
        """The output matrix in fp32, kept once loaded; the embedding table when tied."""
        return self._load(EMBEDDING if self.tied else HEAD, (self.config.vocab_size, self.config.hidden_size))

    def _load(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return self._finite(name, self._shaped(name, shape)).to(self.device, torch.float32, copy=True)

    def _shaped(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The stored tensor; InputError if there is none or its shape is another."""
        where = f"{self._where}: {name}"
        if name not in self._tensors:
            raise InputError("a model weight is missing", where=where, wanted=f"a tensor of shape {list(shape)}")
        tensor = self._tensors[name]
        if tuple(tensor.shape) != shape:
            got, wanted = list(tensor.shape), list(shape)
            raise InputError("a model weight has the wrong shape", where=where, got=got, wanted=wanted)
        return tensor

    def _finite(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself; InputError if it has a NaN or an infinity."""
        bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if bad:
            where, got = f"{self._where}: {name}", f"{bad} of {tensor.numel()} values are NaN or infinite"
            raise InputError("a model weight is not finite", where=where, got=got, fix="download or export it again")
        return tensor

    def _refuse_strangers(self, prefix: str, known: set[str]) -> None:
        """InputError for a stored tensor of the block that its module would not use."""
        stored = {name.removeprefix(prefix) for name in self._tensors if name.startswith(prefix)}
        strangers = sorted(stored - known - set(DERIVED))
        if strangers:
            raise InputError(
                "a model weight is not one that this architecture has",
                where=f"{self._where}: {prefix}{strangers[0]}",
                got=f"{len(strangers)} such tensors in the block",
                wanted=", ".join(sorted(known)),
                fix="check model_type and the bias settings in config.json",
            )


def _skeleton(settings: dict[str, Any], where: str) -> Any:
    """The whole model without memory: transformers' causal LM on the meta device, attention by sdpa."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        config = CONFIG_MAPPING[settings["model_type"]].from_dict(settings)
    except Exception as error:
        raise InputError("transformers refuses the model's configuration", where=where, got=error) from error
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
