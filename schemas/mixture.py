"""Mixtures of experts as they lie in a checkpoint: which blocks have one, what its matrices are called and measure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")
MAX_EXPERTS = 65536


@dataclass(frozen=True)
class Mixture:
    """A mixture within a block: module path, number of experts, their inner size, names of (gate, up, down).

    `shared` is the inner size of the expert that every token goes through, if there is one.
    """

    path: str
    experts: int
    inner: int
    names: tuple[str, str, str]
    shared: int | None = None

    @property
    def router(self) -> str:
        """Module path of the matrix that chooses experts."""
        return f"{self.path}.gate"

    def expert(self, number: int) -> str:
        """Module path of one expert."""
        return f"{self.path}.experts.{number}"


def is_sparse(config: Mapping[str, Any], block: int) -> bool:
    """Whether the MLP of a block is a mixture (transformers, Qwen3MoeDecoderLayer; every block of Mixtral)."""
    kind = config["model_type"]
    if kind not in MIXTURES:
        return False
    if kind == "mixtral":
        return True
    return block not in (config.get("mlp_only_layers") or ()) and (block + 1) % _step(config) == 0


def mixture(config: Mapping[str, Any], block: int) -> Mixture | None:
    """The mixture of a block of a config that `check_mixture` has passed; None where the MLP is dense."""
    if not is_sparse(config, block):
        return None
    if config["model_type"] == "mixtral":
        inner = int(config["intermediate_size"])
        return Mixture("block_sparse_moe", expert_count(config), inner, ("w1", "w3", "w2"))
    shared = int(config["shared_expert_intermediate_size"]) if config["model_type"] == "qwen2_moe" else None
    names = ("gate_proj", "up_proj", "down_proj")
    return Mixture("mlp", expert_count(config), int(config["moe_intermediate_size"]), names, shared)


def required_fields(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Config fields beyond a dense decoder's that must be positive integers."""
    match config["model_type"]:
        case "mixtral":
            return ("num_experts_per_tok",)
        case "qwen2_moe":
            return ("num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size")
        case "qwen3_moe":
            return ("num_experts_per_tok", "moe_intermediate_size")
        case _:
            return ()


def expert_count(config: Mapping[str, Any]) -> int:
    """Experts of a mixture; transformers writes the number under either name. 0 when it is not a number."""
    names = ("num_local_experts", "num_experts")
    found = next((config[name] for name in names if config.get(name) is not None), None)
    return found if isinstance(found, int) and not isinstance(found, bool) and 0 < found <= MAX_EXPERTS else 0


def mixture_shapes(found: Mixture, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name within the block, shape) of every parameter of a mixture."""
    yield f"{found.router}.weight", (found.experts, hidden)
    for expert in range(found.experts):
        yield from _mlp(found.expert(expert), found.names, found.inner, hidden)
    if found.shared is not None:
        yield from _mlp(f"{found.path}.shared_expert", ("gate_proj", "up_proj", "down_proj"), found.shared, hidden)
        yield f"{found.path}.shared_expert_gate.weight", (1, hidden)


def _mlp(path: str, names: tuple[str, str, str], inner: int, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    gate, up, down = names
    yield f"{path}.{gate}.weight", (inner, hidden)
    yield f"{path}.{up}.weight", (inner, hidden)
    yield f"{path}.{down}.weight", (hidden, inner)


def _step(config: Mapping[str, Any]) -> int:
    step = config.get("decoder_sparse_step", 1)
    return step if isinstance(step, int) and step > 0 else 1
