"""The KL probe with cached block inputs against the same with whole forwards from the embeddings, on the demo model.

    OMP_NUM_THREADS=1 PYTHONPATH=.:tests/support python tests/benchmarks/probe_speed.py --keep FOLDER

One format of every unit; both must measure the same. Wanted: at most 60 % of the time. CPU seconds on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import bench
import torch

from schemas.sensitivity import KLProbe
from steps.model.structure import units
from steps.model.whole import hidden_from
from steps.sensitivity import kl_probe
from steps.step import Env
from steps.verify.metrics import chunks, kl

FORMAT = "int2-g32"


@torch.no_grad()
def speed(given: bench.Bench) -> list[str]:
    """The probe of one format of every unit against the same with whole forwards from the embeddings."""
    ports, env = given.ports, Env()
    original = kl_probe.remembered(ports, KLProbe(step="kl_probe").batch, env)
    model, items = ports["model"], ports["candidates"].children
    swaps = {
        u.name: kl_probe.unit_swaps(u, items[f"{u.name}/{FORMAT}"], "cpu")
        for u in units(model.meta["config"], model.meta["shapes"])
    }

    def whole(swap: Mapping[int, Mapping[str, torch.Tensor]]) -> torch.Tensor:
        """What a probe without cached inputs does: embeddings, all blocks, logits, KL."""
        found, done = [], 0
        for part in original.parts:
            hidden_NSD = original.stream.embed(part.ids_NS)
            normed_PD = part.pick(hidden_from(original.stream, original.blocks, 0, hidden_NSD, swap))
            for rows in chunks(len(normed_PD), original.stream.config.vocab_size):
                log_q_PV = torch.log_softmax(original.stream.logits(normed_PD[rows]), dim=-1)
                found.append(kl(original.log_p(slice(done + rows.start, done + rows.stop)), log_q_PV))
            done += len(normed_PD)
        return torch.cat(found)

    seconds = {"cached": 0.0, "whole": 0.0}
    for swap in swaps.values():
        started = time.process_time()
        cached_P = kl_probe.probe(original, swap)
        middle = time.process_time()
        whole_P = whole(swap)
        assert torch.allclose(cached_P, whole_P, atol=1e-6), "both must measure the same"
        seconds["cached"] += middle - started
        seconds["whole"] += time.process_time() - middle
    share = seconds["cached"] / seconds["whole"]
    return [
        f"KL probe of {len(swaps)} units: {seconds['cached']:.2f} s with cached block inputs, "
        f"{seconds['whole']:.2f} s with whole forwards: {share:.0%} (wanted: at most 60%)"
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--score-windows", type=int, default=24)
    options = parser.parse_args()
    print("\n".join(speed(bench.open_bench(options.keep, options.score_windows, 2, [FORMAT]))))


if __name__ == "__main__":
    main()
