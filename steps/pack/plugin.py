"""The transformers plug-in of our container: once imported, `AutoModelForCausalLM.from_pretrained(folder)` loads it.

transformers finds a quantizer by `quant_method` in two registries (quantizers/auto.py); its base classes demand
inheritance, which is used here and nowhere else. Modules named in the config are replaced on the meta device, filled
from the files by name, and then compared with the digests in the config.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from schemas.errors import InputError
from steps.model.experts import module_name
from steps.pack.container import METHOD, Matrix, matrices
from steps.pack.modules import PackedMatrix
from steps.pack.replace import put_packed


@register_quantization_config(METHOD)
class BitsmithConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """`quantization_config` of a config.json written by `steps.pack.container.settings`."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(quant_method=METHOD)
        self.version = fields.get("version")
        self.formats = fields.get("formats", {})
        self.modules = fields.get("modules", {})

    @property
    def matrices(self) -> list[Matrix]:
        """What is packed; InputError when the document is of another version."""
        document = {"version": self.version, "formats": self.formats, "modules": self.modules}
        return matrices(document, "config.json")


@register_quantizer(METHOD)
class BitsmithQuantizer(HfQuantizer):  # type: ignore[misc]
    """Replaces the packed linears and embeddings of a model; inference only."""

    requires_calibration = True
    is_trainable = False

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """InputError before any weights are read when the container's version is not understood."""
        assert self.quantization_config.matrices is not None

    def is_serializable(self) -> bool:
        """Whether `save_pretrained` gives the same files again."""
        return False

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """The model's dtype for its own parameters; packed tensors are buffers of the dtype they are stored in."""
        return dtype

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        matrices = {m.name: (m.format, m.shape) for m in self.quantization_config.matrices}
        put_packed(model, matrices)
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        for matrix in self.quantization_config.matrices:
            _check_digests(matrix, model.get_submodule(module_name(matrix.name)))
        return model


def _check_digests(matrix: Matrix, module: nn.Module) -> None:
    assert isinstance(module, PackedMatrix)
    for full, tensor in module.stored().items():
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        found, wanted = hashlib.sha256(data).hexdigest(), matrix.sha256.get(full.removeprefix(f"{matrix.name}."))
        if found != wanted:
            raise InputError(
                "a packed tensor is not what was built",
                where=full,
                got=f"sha256 {found}",
                wanted=f"sha256 {wanted}",
                fix="copy the folder again, or build it again",
            )
