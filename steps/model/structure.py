"""The shape of a decoder as plain data: which linears share an input, which must share a format, what weighs what.

Everything follows from the architecture's table (schemas/structure.py, schemas/mixture.py). Torch-free, so that a plan
can be made before torch is imported.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from schemas.artifact import Unit
from schemas.errors import InputError
from schemas.mixture import Mixture, expert_count, mixture
from schemas.structure import EMBEDDING, HEAD, is_tied
from schemas.structure import SUPPORTED as SUPPORTED
from schemas.structure import check_supported as check_supported
from schemas.units import Grouping

Shapes = Mapping[str, tuple[int, ...]]
"""Parameter name -> shape."""

EMBEDDING_UNIT, HEAD_UNIT = "embed_tokens", "lm_head"
_NAME = re.compile(r"layers\.(0|[1-9][0-9]*)(?:\.(.+))?")


@dataclass(frozen=True)
class OrderGroup:
    """Linears of a block that read the same input; engines fuse them, so they are one unit.

    `expert` is the number of the expert they belong to, if they see only the tokens that are routed to it. A router is
    a matrix that chooses experts; it is no unit unless asked for.
    """

    name: str
    members: tuple[str, ...]
    expert: int | None = None
    router: bool = False


ATTENTION = (
    OrderGroup("self_attn.qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    OrderGroup("self_attn.o", ("self_attn.o_proj",)),
)


def order_groups(config: Mapping[str, Any], block: int) -> tuple[OrderGroup, ...]:
    """Every group of a block, in order; in a mixture the router and the shared expert go before the experts."""
    found = mixture(config, block)
    return (*ATTENTION, *(_mlp("mlp", ("gate_proj", "up_proj", "down_proj")) if found is None else _mixture(found)))


def _mlp(path: str, names: tuple[str, str, str], expert: int | None = None) -> tuple[OrderGroup, OrderGroup]:
    gate, up, down = (f"{path}.{name}" for name in names)
    return OrderGroup(f"{path}.gate_up", (gate, up), expert), OrderGroup(f"{path}.down", (down,), expert)


def _mixture(found: Mixture) -> Iterator[OrderGroup]:
    yield OrderGroup(f"{found.path}.router", (found.router,), router=True)
    if found.shared is not None:
        yield from _mlp(f"{found.path}.shared_expert", ("gate_proj", "up_proj", "down_proj"))
    for number in range(found.experts):
        yield from _mlp(found.expert(number), found.names, number)


IN_BLOCKS = "model.layers."
"""What the names of everything in a decoder block begin with; embedding and head are not counted among the linears."""


def block_prefix(block: int) -> str:
    """Prefix of the parameter names of a decoder block."""
    return f"model.layers.{block}."


def last_block(config: Mapping[str, Any]) -> int:
    """The block whose statistics hold what the matrices outside the blocks see."""
    return int(config["num_hidden_layers"]) - 1


def units(config: Mapping[str, Any], shapes: Shapes, grouping: Grouping = "fused") -> list[Unit]:
    """The units of all decoder blocks in model order; neither routers nor what lies outside the blocks."""
    return [u for block in range(last_block(config) + 1) for u in block_units(config, shapes, block, grouping)]


def block_units(config: Mapping[str, Any], shapes: Shapes, block: int, grouping: Grouping) -> list[Unit]:
    """The units of one block, routers excepted."""
    groups = [group for group in order_groups(config, block) if not group.router]
    match grouping:
        case "fused":
            return [_unit(block, group.name, [group], shapes) for group in groups]
        case "linears":
            single = [g if len(g.members) == 1 else OrderGroup(m, (m,)) for g in groups for m in g.members]
            sources = [g.name for g in groups for _ in g.members]
            return [_unit(block, g.name, [g], shapes, s) for g, s in zip(single, sources, strict=True)]
        case "blocks":
            return [_unit(block, "", groups, shapes)]


def routers(config: Mapping[str, Any], shapes: Shapes) -> list[Unit]:
    """One unit per router, in model order."""
    blocks = range(last_block(config) + 1)
    groups = [(block, group) for block in blocks for group in order_groups(config, block) if group.router]
    return [_unit(block, group.name, [group], shapes) for block, group in groups]


def _unit(block: int, name: str, groups: Iterable[OrderGroup], shapes: Shapes, statistics: str = "") -> Unit:
    pairs = [(f"{block_prefix(block)}{m}", statistics or g.name) for g in groups for m in g.members]
    return Unit(
        name=f"layers.{block}.{name}".rstrip("."),
        block=block,
        members=tuple(member for member, _ in pairs),
        shapes=tuple(_shape(shapes, member) for member, _ in pairs),
        statistics=tuple(source for _, source in pairs),
    )


def _shape(shapes: Shapes, member: str) -> tuple[int, int]:
    rows, columns = shapes[f"{member}.weight"]
    return rows, columns


def embedding_unit(config: Mapping[str, Any], shapes: Shapes) -> Unit:
    """The embedding; when the head is tied to it, both in one."""
    tied = is_tied(config)
    return _outside(config, shapes, EMBEDDING_UNIT, EMBEDDING, "tied" if tied else "embedding")


def head_unit(config: Mapping[str, Any], shapes: Shapes) -> Unit | None:
    """The head; None when it is tied to the embedding."""
    return None if is_tied(config) else _outside(config, shapes, HEAD_UNIT, HEAD, "head")


def _outside(config: Mapping[str, Any], shapes: Shapes, name: str, parameter: str, use: Any) -> Unit:
    member = parameter.removesuffix(".weight")
    statistics = EMBEDDING_UNIT if use == "embedding" else HEAD_UNIT
    shape = _shape(shapes, member)
    return Unit(
        name=name, block=last_block(config), members=(member,), shapes=(shape,), statistics=(statistics,), use=use
    )


def find_units(config: Mapping[str, Any], shapes: Shapes, names: Iterable[str]) -> list[Unit]:
    """The units of these names, however each was cut, in model order.

    InputError for a name that the model has no unit of, and for two units that share a matrix.
    """
    wanted = dict.fromkeys(names)
    known = {u.name: u for u in _named(config, shapes, wanted)}
    for name in wanted:
        if name not in known:
            raise InputError("the model has no such unit", where=name, fix="use what was made from this model")
    found = [unit for name, unit in known.items() if name in wanted]
    holders: dict[str, str] = {}
    for unit in found:
        for member in unit.members:
            if member in holders:
                got = f"{holders[member]} and {unit.name}"
                raise InputError("two units share a matrix", where=member, got=got, fix="cut the model in one way")
            holders[member] = unit.name
    return found


def _named(config: Mapping[str, Any], shapes: Shapes, wanted: Collection[str]) -> Iterator[Unit]:
    """Every unit that any way of cutting makes, in model order, of the blocks and ends that are wanted at all."""
    blocks = {int(match[1]) for name in wanted if (match := _NAME.fullmatch(name))}
    if EMBEDDING_UNIT in wanted:
        yield embedding_unit(config, shapes)
    for block in sorted(block for block in blocks if block <= last_block(config)):
        yield from block_units(config, shapes, block, "blocks")
        for group in order_groups(config, block):
            fused = _unit(block, group.name, [group], shapes)
            yield fused
            if len(group.members) > 1:
                yield from (_unit(block, m, [OrderGroup(m, (m,))], shapes, group.name) for m in group.members)
    if HEAD_UNIT in wanted and (head := head_unit(config, shapes)) is not None:
        yield head


def expert_role(name: str) -> str | None:
    """What all experts of a layer have in common: `layers.3.mlp.experts.7.down` -> `layers.3.mlp.experts.*.down`.

    None for a unit or matrix of no expert.
    """
    path, inside, rest = name.partition(".experts.")
    return f"{path}.experts.*.{rest.partition('.')[2]}" if inside else None


def experts_path(name: str) -> str | None:
    """`layers.3.mlp.experts.7.down` -> `layers.3.mlp.experts`; None for a unit or matrix of no expert."""
    path, inside, _ = name.partition(".experts.")
    return f"{path}.experts" if inside else None


def use_share(config: Mapping[str, Any], member: str) -> float:
    """Share of tokens that run through a matrix, on average: less than 1 for an expert."""
    return int(config["num_experts_per_tok"]) / expert_count(config) if ".experts." in member else 1.0


def max_length(config: Mapping[str, Any]) -> int:
    """Longest window on which plain causal attention is what the model computes."""
    limit = int(config["max_position_embeddings"])
    window = config.get("sliding_window")
    return min(limit, int(window)) if window and config.get("use_sliding_window", True) else limit
