"""The code of a step is its import closure: edits to any helper change it, comments and unrelated files do not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import code_id
from pipelines.code_id import closure, closure_digest, code_of, module_digest

TREE = {
    "schemas/__init__.py": "",
    "schemas/spec.py": "A = 1\n",
    "steps/__init__.py": "",
    "steps/entry.py": "from steps.near import f\n\ndef run():\n    from steps.lazy import g\n    return f() + g()\n",
    "steps/near.py": "import steps.far\n\ndef f():\n    return steps.far.x\n",
    "steps/far.py": "from schemas.spec import A\nx = A\n",
    "steps/lazy.py": "def g():\n    return 2\n",
    "steps/other.py": "y = 1\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[str, str], str]:
    """Write the little tree; calling the fixture's value edits one file and returns the entry's new digest."""
    for name, text in TREE.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def edited(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        module_digest.cache_clear()
        closure_digest.cache_clear()
        return closure_digest("steps.entry", tmp_path)

    edited("steps/other.py", TREE["steps/other.py"])
    return edited


def test_the_closure_follows_lazy_and_plain_imports(tree: Callable[[str, str], str], tmp_path: Path) -> None:
    assert set(closure("steps.entry", tmp_path)) >= {
        "steps.entry",
        "steps.near",
        "steps.far",
        "steps.lazy",
        "schemas.spec",
    }
    assert "steps.other" not in closure("steps.entry", tmp_path)


@pytest.mark.parametrize("name", ["steps/far.py", "steps/lazy.py", "schemas/spec.py", "steps/near.py"])
def test_an_edit_to_any_helper_changes_the_digest_and_taking_it_back_restores_it(
    tree: Callable[[str, str], str], name: str
) -> None:
    before = tree(name, TREE[name])
    assert tree(name, TREE[name] + "z = 3\n") != before
    assert tree(name, TREE[name]) == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("steps/far.py", "# a comment\n" + TREE["steps/far.py"]),
        ("steps/lazy.py", '"""A docstring."""\n\n\ndef g():\n    """Another."""\n    return 2\n'),
        ("steps/near.py", "import steps.far\ndef f():\n        return (steps.far.x)\n"),
        ("steps/other.py", "y = 2\n"),
    ],
)
def test_comments_docstrings_layout_and_unrelated_files_change_nothing(
    tree: Callable[[str, str], str], name: str, text: str
) -> None:
    before = tree(name, TREE[name])
    assert tree(name, text) == before


def test_code_is_a_version_only_while_the_lock_names_it(tree: Callable[[str, str], str], tmp_path: Path) -> None:
    digest = tree("steps/other.py", "y = 1\n")
    locked = {"steps.entry": {"version": 3, "digest": digest}}
    assert code_of("steps.entry", tmp_path, locked) == "v3"
    changed = tree("steps/lazy.py", "def g():\n    return 3\n")
    assert code_of("steps.entry", tmp_path, locked) == f"dirty:{changed}"
    assert code_of("steps.entry", tmp_path, {}) == f"dirty:{changed}"


def test_the_committed_lock_names_the_code_of_every_step() -> None:
    module_digest.cache_clear()
    closure_digest.cache_clear()
    assert code_id.next_lock() == dict(code_id.lock()), "run `make lock`"
