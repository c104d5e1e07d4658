"""Which code a step is: the digest of everything of ours that it imports, and the version that digest stands for.

    python -m pipelines.code_id --check     # exit 1 when a step's code is not the code that versions.lock names
    python -m pipelines.code_id --update    # give every changed step its next version

`steps/versions.lock` maps a step to {"version", "digest"}. While the digest of a step's import closure equals the one
in the lock, its code is `v<version>`; otherwise it is `dirty:<digest>`, so that an edit is never answered from traces
of other code, and an edit that is taken back finds its old traces again.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "steps" / "versions.lock"
PACKAGES = ("schemas", "steps")
"""Steps import nothing else of ours (import-linter holds it)."""
EMPTY_LOCK: dict[str, Any] = {}


@lru_cache(maxsize=1)
def lock() -> Mapping[str, Mapping[str, Any]]:
    """The committed versions."""
    if not LOCK.exists():
        return EMPTY_LOCK
    data: Mapping[str, Mapping[str, Any]] = json.loads(LOCK.read_text("utf-8"))
    return data


def code_of(module: str, root: Path = ROOT, locked: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """`v<n>` or `dirty:<digest>` for the step in `module`."""
    entry = (lock() if locked is None else locked).get(module)
    digest = closure_digest(module, root)
    return f"v{entry['version']}" if entry and entry["digest"] == digest else f"dirty:{digest}"


@lru_cache(maxsize=256)
def closure_digest(module: str, root: Path = ROOT) -> str:
    """sha256 over the module digests of the import closure, in order of module name."""
    digests = {name: module_digest(name, root)[0] for name in closure(module, root)}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=256)
def module_digests(module: str, root: Path = ROOT) -> Mapping[str, str]:
    """Short digest of every module in the closure, so that `explain` can name the file that changed."""
    return {name: module_digest(name, root)[0][:12] for name in closure(module, root)}


def closure(module: str, root: Path = ROOT) -> list[str]:
    """All modules of ours that `module` imports, itself included, at the top or inside functions."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(module_digest(name, root)[1])
    return sorted(seen)


@lru_cache(maxsize=1024)
def module_digest(module: str, root: Path = ROOT) -> tuple[str, tuple[str, ...]]:
    """Digest of a module's syntax tree without comments and docstrings, and the modules of ours that it imports."""
    tree = ast.parse(_path(module, root).read_bytes())
    for node in ast.walk(tree):
        _drop_docstring(node)
    text = json.dumps(_plain(tree), separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest(), tuple(sorted(set(_imports(tree, root))))


def _path(module: str, root: Path) -> Path:
    base = root.joinpath(*module.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def _drop_docstring(node: ast.AST) -> None:
    body = getattr(node, "body", None)
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or not body:
        return
    # Bare strings are documentation wherever they stand: after a field they document the field.
    kept = [
        s
        for s in node.body
        if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) and isinstance(s.value.value, str))
    ]
    node.body = kept or [ast.Pass()]


def _plain(value: Any) -> Any:
    """A syntax tree as JSON; empty fields are left out, so that fields new in a later Python change nothing."""
    if isinstance(value, ast.AST):
        fields = ((k, _plain(v)) for k, v in ast.iter_fields(value) if v not in (None, []) and k != "ctx")
        return [type(value).__name__, dict(fields)]
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | bool | None) else repr(value)


def _imports(tree: ast.AST, root: Path) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.split(".")[0] in PACKAGES and _path(name, root).exists():
                yield name


def next_lock() -> dict[str, dict[str, Any]]:
    """The lock as it should be: changed steps get their next version, new ones version 1, gone ones go."""
    from steps.table import STEPS

    result = {}
    for module in sorted({step.module for step in STEPS}):
        digest, old = closure_digest(module), lock().get(module)
        if old and old["digest"] == digest:
            result[module] = dict(old)
        else:
            result[module] = {"version": old["version"] + 1 if old else 1, "digest": digest}
    return result


def main() -> int:
    """Check or update the lock."""
    wanted = next_lock()
    changed = [m for m in wanted if wanted[m] != lock().get(m)]
    if "--update" in sys.argv:
        LOCK.write_text(json.dumps(wanted, indent=1, sort_keys=True) + "\n", "utf-8")
        print("\n".join(f"{m} is now v{wanted[m]['version']}" for m in changed) or "nothing changed")
        return 0
    if changed:
        print(
            "not the code that steps/versions.lock names; run `python -m pipelines.code_id --update`:",
            *changed,
            sep="\n  ",
        )
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
