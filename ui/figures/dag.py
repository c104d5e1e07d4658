"""The recipe as a graph, sources on top: what each node did, how long it took. Edges that others imply are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from schemas.report import NodeRow
from ui.figures.svg import picture, tag, text
from ui.words import duration

BOX_W, BOX_H, GAP_X, GAP_Y = 168.0, 43.0, 28.0, 24.0


@dataclass(frozen=True)
class Graph:
    """Nodes in running order with the nodes they read from."""

    inputs: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, recipe: Mapping[str, object]) -> Graph:
        """From a recipe document; edges are `node` or `node.port`."""
        nodes = recipe.get("nodes")
        assert isinstance(nodes, Mapping)
        return cls(
            {n: tuple(dict.fromkeys(e.partition(".")[0] for e in d["inputs"].values())) for n, d in nodes.items()}
        )

    def layers(self) -> dict[str, int]:
        """Longest way from a source."""
        depth: dict[str, int] = {}

        def of(node: str) -> int:
            if node not in depth:
                depth[node] = 1 + max((of(n) for n in self.inputs.get(node, ()) if n in self.inputs), default=-1)
            return depth[node]

        for node in self.inputs:
            of(node)
        return depth

    def essential(self) -> dict[str, tuple[str, ...]]:
        """Edges without those that a longer way implies."""
        above: dict[str, set[str]] = {}
        for node in sorted(self.inputs, key=self.layers().__getitem__):
            above[node] = {a for n in self.inputs[node] if n in above for a in (n, *above[n])}
        return {
            node: tuple(n for n in reads if not any(n in above.get(other, ()) for other in reads if other != n))
            for node, reads in self.inputs.items()
        }


def dag(recipe: Mapping[str, object], rows: Sequence[NodeRow]) -> Markup:
    """The drawing; each box leads to the node's row in the table (`#node-NAME`)."""
    graph = Graph.of(recipe)
    edges, depth = graph.essential(), graph.layers()
    columns = _columns(graph, edges, depth)
    widest = max(len(layer) for layer in columns)
    width = widest * (BOX_W + GAP_X) + 8
    at = {
        node: (
            4 + (width - 8 - len(layer) * (BOX_W + GAP_X) + GAP_X) / 2 + k * (BOX_W + GAP_X),
            4 + d * (BOX_H + GAP_Y),
        )
        for d, layer in enumerate(columns)
        for k, node in enumerate(layer)
    }
    parts = [_edge(at[source], at[node]) for node, reads in edges.items() for source in reads if source in at]
    by_id = {row.id: row for row in rows}
    parts += [_box(node, by_id.get(node), *at[node]) for node in at]
    return picture(
        width, len(columns) * (BOX_H + GAP_Y) - GAP_Y + 8, "The recipe's nodes and what each did", parts, "fig dag"
    )


def _columns(graph: Graph, edges: Mapping[str, tuple[str, ...]], depth: Mapping[str, int]) -> list[list[str]]:
    """Nodes by layer; within a layer near what they read and what reads them, by repeated averages."""
    layers = [[n for n in graph.inputs if depth[n] == d] for d in range(max(depth.values()) + 1)]
    place = {n: k - (len(layer) - 1) / 2 for layer in layers for k, n in enumerate(layer)}
    near: dict[str, list[str]] = {n: list(reads) for n, reads in edges.items()}
    for node, reads in edges.items():
        for source in reads:
            near.setdefault(source, []).append(node)
    for _ in range(8):
        for layer in layers:
            layer.sort(key=lambda n: sum(place[m] for m in near[n]) / len(near[n]) if near[n] else 0.0)
            place |= {n: k - (len(layer) - 1) / 2 for k, n in enumerate(layer)}
    return layers


def _edge(source: tuple[float, float], node: tuple[float, float]) -> Markup:
    x1, y1, x2, y2 = source[0] + BOX_W / 2, source[1] + BOX_H, node[0] + BOX_W / 2, node[1]
    bend = (y2 - y1) / 2
    return tag(
        "path",
        d=f"M{x1:.1f} {y1:.1f}C{x1:.1f} {y1 + bend:.1f} {x2:.1f} {y2 - bend:.1f} {x2:.1f} {y2:.1f}",
        class_="edge",
    )


def state_of(row: NodeRow | None) -> str:
    """What a node did, in a word; what is read from outside is a source."""
    if row is None:
        return "unknown"
    return "source" if row.units_computed + row.units_cached == 0 else row.status


def _box(node: str, row: NodeRow | None, x: float, y: float) -> Markup:
    state = state_of(row)
    did = {"computed": "computed", "cached": "cached", "partial": "in part", "source": "source"}.get(state, "")
    taken = duration(row.seconds) if row is not None and state in ("computed", "partial") else ""
    count = f"{row.units_computed} of {row.units_computed + row.units_cached}" if row and state == "partial" else ""
    below = ", ".join(part for part in (did, count, taken) if part)
    name = node if len(node) <= 20 else f"{node[:19]}…"
    return tag(
        "a",
        tag("title", f"{node} ({row.step if row else 'unknown'}): {below}"),
        tag("rect", x=x, y=y, width=BOX_W, height=BOX_H, rx=5, class_=f"node {state}"),
        tag("rect", x=x, y=y, width=4, height=BOX_H, rx=2, class_=f"mark {state}"),
        text(x + 13, y + 19, name, "title"),
        text(x + 13, y + 35, below, "faint"),
        href=f"#node-{node}",
    )
