"""A build of very many units: what a no-op run of it costs, and what one changed layer computes.

    PYTHONPATH=.:tests/support python tests/benchmarks/many_units.py [--blocks 104]

Builds a random Llama of `blocks` tiny blocks in twelve formats (four units a block), then times `bitsmith run`'s
look-up in a process of its own, then changes one weight in the last block and counts the items computed against those
that depend on it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from builds import CONFIG, open_build, run_build
from checkpoints import edit_tensors
from models import tiny_value, write_model
from safetensors.torch import load_file

FORMATS = [f"int{b}-{g}" for b in (2, 3, 4, 8) for g in ("g32", "g64", "row")]
CHANGES = {
    "formats": FORMATS,
    "method": "rtn",
    "sensitivity": "fisher",
    "distill": None,
    "budget": {"bits_per_weight": 4.0},
}
LOOK_UP = (
    "import sys, time; started = time.perf_counter()\n"
    "from pathlib import Path\nfrom pipelines.build import prepare\nfrom pipelines.drive import look_up\n"
    "from pipelines.settings import Settings\n"
    "f = Path(sys.argv[1])\n"
    "where = Settings(f / 'state', str(f / 'state/store'), 'sqlite://', None)\n"
    "build = prepare(str(f / 'recipe.yaml'), [], where, 'cpu')\n"
    "rows = look_up(build.runner).rows\n"
    "print(f'{time.perf_counter() - started:.2f} s for {sum(r.units_cached for r in rows)} cached units')\n"
)


def change_one_weight(folder: Path, name: str) -> None:
    """Nudge one weight in whichever shard holds it."""
    for shard in folder.glob("*.safetensors"):
        tensors = load_file(shard)
        if name in tensors:
            changed = tensors[name].clone()
            changed[0, 0] += 0.25
            edit_tensors(shard, {name: changed})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--blocks", type=int, default=104)
    blocks = parser.parse_args().blocks
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        open_build(folder)  # texts
        config = {**CONFIG, "num_hidden_layers": blocks}
        write_model(folder / "model", tiny_value(tied=True, **config), shards=2)
        started = time.perf_counter()
        built = run_build(open_build(folder, **CHANGES))
        units = sum(row.units_computed for row in built.rows)
        print(f"cold: {time.perf_counter() - started:.1f} s for {units} units")
        done = subprocess.run([sys.executable, "-c", LOOK_UP, str(folder)], capture_output=True, text=True, check=True)
        print(f"no-op, process start aside: {done.stdout.strip()}")
        change_one_weight(folder / "model", f"model.layers.{blocks - 1}.mlp.down_proj.weight")
        again = run_build(open_build(folder, **CHANGES))
        computed = {row.id: row.units_computed for row in again.rows}
        print("one weight of the last down projection changed:")
        print(f"  {computed['candidates']} of {blocks * 4 * len(FORMATS)} candidates computed, {len(FORMATS)} depend")
        print(f"  statistics of {computed['statistics']} block(s) computed, 1 depends on it")


if __name__ == "__main__":
    main()
