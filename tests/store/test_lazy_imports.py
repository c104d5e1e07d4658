"""What a fully cached run pays: no torch and no fsspec until a tensor or a remote store is touched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LOOK_UP = """
import sys
from store.open import Store
from store.fsck import fsck
from store.prune import prune
from stores import put_trace, trace_of
heavy = {"torch", "fsspec", "s3fs", "numpy", "prefect", "mlflow", "pipelines", "steps"}
store = Store(sys.argv[1])
store.check_writable()
with store.running("x"), store.batch():
    digest = store.artifacts.save({"n": 1})
    put_trace(store, trace_of(1, {"o": digest}))
assert store.traces.get_many([trace_of(1, {}).key]) and not store.artifacts.missing(digest)
assert store.artifacts.load(digest).meta == {"n": 1} and fsck(store).sound and prune(store, dry_run=True).traces
print(sorted(heavy & set(sys.modules)))
"""


def test_looking_up_imports_nothing_heavy(tmp_path: Path) -> None:
    here = Path(__file__).parents[2]
    environment = {"PYTHONPATH": f"{here}:{here / 'tests' / 'support'}", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", LOOK_UP, str(tmp_path / "store")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.stdout == "[]\n", ran.stderr
