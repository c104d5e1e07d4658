"""What refinement is measured on, in one folder that torch, safetensors and pydantic alone can read.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/benchmarks/refine_inputs.py --keep FOLDER [--tokens 98304] [--bits 3.26]
        [--formats int3-g64 ...] [--method gptq] [--text SOURCE] [--candidates]

prints the folder that `load` reads. Preparing needs all of Bitsmith; reading does not, so that the folder can be taken
to a machine with a GPU and little else. The demo's recipe is run up to what is wanted; what is there already is kept.
Training text is the split that the demo model was trained on, for more than 600,000 tokens with the docstrings of
installed packages behind it, unless `--text` names another source.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from schemas.base import digest_of
from steps.step import Output, Value

if TYPE_CHECKING:
    from schemas.recipe import Recipe

FORMATS = [f"int{b}-g{g}" for b in (2, 3, 4) for g in (32, 64, 128)] + ["int5-g128", "int6-g128"]
PORTS = {
    "model": "model.model",
    "selection": "allocated.selection",
    "training": "training.tokens",
    "evaluation": "evaluation.tokens",
    "reference": "reference.reference",
}
"""Name of a value -> node and output port of the demo's recipe."""
CANDIDATES = {
    "candidates": "candidates.candidates",
    "scores": "scores.scores",
    "scoring": "scoring.tokens",
    "scoring_reference": "scoring_reference.reference",
}
"""The same for what a plan is made from."""
SPLIT_TOKENS = 600_000
"""Of the demo model's training text, held-out windows aside."""
BETWEEN = "|"
"""Stands between the names of children in the name of a tensor."""


def prepare(
    keep: Path,
    formats: list[str],
    bits: float,
    method: str,
    tokens: int,
    text: str | None = None,
    ports: Mapping[str, str] = PORTS,
) -> Path:
    """A folder below `keep` with these values, each made once; its name is the digest of what was asked."""
    folder = keep / f"inputs-{digest_of([sorted(formats), bits, method, tokens, text])[:16]}"
    absent = {name: edge for name, edge in ports.items() if not (folder / f"{name}.json").exists()}
    if absent:
        folder.mkdir(parents=True, exist_ok=True)
        source = text or str(training_text(keep, tokens))
        for name, value in _values(keep, formats, bits, method, tokens, source, absent).items():
            write(value, folder / name)
    return folder


def load(folder: Path) -> dict[str, Value]:
    """The values in a prepared folder, by name."""
    return {path.stem: read(path) for path in sorted(folder.glob("*.json"))}


def write(value: Value, path: Path) -> None:
    """A value as `path`.json and `path`.safetensors. Its files are left out: no step of training reads any."""
    tensors: dict[str, torch.Tensor] = {}
    tree = _tree(value, "", tensors)
    save_file(tensors, path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text(json.dumps(tree))  # last: the value is whole


def read(path: Path) -> Output:
    """What `write` left."""
    return _value(json.loads(path.with_suffix(".json").read_text()), "", load_file(path.with_suffix(".safetensors")))


def _tree(value: Value, prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    tensors |= {prefix + name: tensor.contiguous().clone() for name, tensor in value.tensors.items()}
    children = {name: _tree(child, prefix + name + BETWEEN, tensors) for name, child in value.children.items()}
    return {"meta": dict(value.meta), "tensors": list(value.tensors), "children": children}


def _value(tree: Mapping[str, Any], prefix: str, tensors: Mapping[str, torch.Tensor]) -> Output:
    children = {name: _value(child, prefix + name + BETWEEN, tensors) for name, child in tree["children"].items()}
    return Output(tree["meta"], {name: tensors[prefix + name] for name in tree["tensors"]}, children)


def part(tokens: Value, windows: range) -> Output:
    """Some windows of a text."""
    return Output(tokens.meta, {name: tensor[windows.start : windows.stop] for name, tensor in tokens.tensors.items()})


def training_text(folder: Path, tokens: int = 0) -> Path:
    """The demo model's training documents as JSONL; for more tokens than those have, installed docstrings as well."""
    from pipelines.demo.corpus import documents, split_of

    path = folder / ("train.jsonl" if tokens <= SPLIT_TOKENS else "train_and_installed.jsonl")
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        named = {name: text for name, text in sorted(documents().items()) if split_of(name) == "train"}
        named |= installed_documents() if tokens > SPLIT_TOKENS else {}
        path.write_text("".join(json.dumps({"name": name, "text": text}) + "\n" for name, text in named.items()))
    return path


def installed_documents() -> dict[str, str]:
    """All docstrings of every fifth module of the installed packages, but for those that are also CPython's."""
    from pipelines.demo.corpus import MIN_DOCSTRING_CHARS, docstrings, raw_documents

    seen = {text for _, texts in raw_documents() for text in texts}
    root, found = Path(sysconfig.get_paths()["purelib"]), dict[str, str]()
    for path in sorted(root.rglob("*.py"))[::5]:
        try:
            fresh = [text for text in docstrings(path) if text not in seen]
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        seen.update(fresh)
        if len(body := "\n\n".join(dict.fromkeys(fresh))) > MIN_DOCSTRING_CHARS:
            found[path.relative_to(root).as_posix()] = body
    return found


def _values(
    keep: Path, formats: list[str], bits: float, method: str, tokens: int, text: str, ports: Mapping[str, str]
) -> dict[str, Value]:
    """Everything asked, from the demo's recipe run as far as that takes."""
    from pipelines.build import prepare as prepare_build
    from pipelines.drive import drive
    from pipelines.run import Place, Runner
    from pipelines.settings import Settings

    changes = [
        ("method", method),
        ("sensitivity", "fisher"),
        ("formats", formats),
        ("budget", {"bits_per_weight": bits}),
        ("distill", {"text": text, "tokens": tokens}),
    ]
    where = Settings(keep / "state", str(keep / "store"), f"sqlite:///{keep / 'mlflow.db'}", None)
    build = prepare_build("demo", changes, where, "cpu")
    edges = {name: edge.partition(".")[::2] for name, edge in ports.items()}
    runner = Runner(
        needed(build.recipe, [node for node, _ in edges.values()]), build.runner.store, Place("cpu", keep / "cache")
    )
    outputs = drive(runner, runner.execute).outputs
    return {
        name: runner.source(node)
        if runner.by_id[node].step is None
        else runner.store.artifacts.load(outputs[node][port])
        for name, (node, port) in edges.items()
    }


def needed(recipe: Recipe, wanted: list[str]) -> Recipe:
    """The nodes that these stand on, and themselves."""
    from schemas.recipe import Recipe

    names, stack = set(), list(wanted)
    while stack:
        name = stack.pop()
        if name not in names:
            names.add(name)
            stack += [edge.partition(".")[0] for edge in recipe.nodes[name].inputs.values()]
    return Recipe(name=recipe.name, nodes={name: node for name, node in recipe.nodes.items() if name in names})


def main() -> None:
    """Prepare what the command line asks and print where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=98_304)
    parser.add_argument("--bits", type=float, default=3.26)
    parser.add_argument("--formats", nargs="+", default=FORMATS)
    parser.add_argument("--method", default="gptq", help="of the candidates")
    parser.add_argument("--text")
    parser.add_argument("--candidates", action="store_true", help="all candidates and their scores, too")
    asked = parser.parse_args()
    ports = PORTS | CANDIDATES if asked.candidates else PORTS
    print(prepare(asked.keep, asked.formats, asked.bits, asked.method, asked.tokens, asked.text, ports))


if __name__ == "__main__":
    main()
