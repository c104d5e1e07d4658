"""File formats of a build."""

from __future__ import annotations

from typing import Literal

from schemas.base import Spec

PackFormat = Literal["compressed-tensors"]


class Pack(Spec):
    """Write the selection and everything around it as one folder that an engine loads."""

    step: Literal["pack"]
    format: PackFormat = "compressed-tensors"
