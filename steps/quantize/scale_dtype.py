"""The dtype that scales are stored in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def scale_dtype(config: Mapping[str, Any]) -> torch.dtype:
    """float16 for a float16 model, else bfloat16, so that a loader that casts scales to the model's dtype is exact."""
    name = str(config.get("dtype") or config.get("torch_dtype") or "")
    return torch.float16 if name.removeprefix("torch.") == "float16" else torch.bfloat16
