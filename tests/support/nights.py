"""Several nights in one process; a worker gives each a process of its own, which costs seconds.

    python tests/support/nights.py PLAN OUT

PLAN is JSON: recipe, model (its folder), store, tracking, alarm (URL of a webhook) and nights, each with `set`
(overrides) and `nudge` (a tensor of which one weight changes before). OUT gets one JSON object per night.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from checkpoints import edit_tensors
from safetensors.torch import load_file

AUTOMATION = Path(__file__).resolve().parents[2] / "pipelines" / "automations" / "nightly-failed.yaml"


def nudge(model: Path, name: str) -> None:
    """Change one weight of a checkpoint, whichever shard it is in."""
    for shard in model.glob("*.safetensors"):
        tensors = load_file(shard)
        if name in tensors:
            changed = tensors[name].clone()
            changed[0, 0] += 0.25
            edit_tensors(shard, {name: changed})


def install_alarm(url: str) -> None:
    """What README.md tells to do: a webhook block, and the example automation with its id."""
    from prefect.blocks.webhook import Webhook
    from prefect.settings import PREFECT_API_URL

    from pipelines import servers

    block: Any = Webhook(method="POST", url=url).save("nightly-failed", overwrite=True)
    document = yaml.safe_load(AUTOMATION.read_text().replace("WEBHOOK", str(block)))
    servers.call(PREFECT_API_URL.value(), "/automations/", document)


def main() -> None:
    """Run the nights of a plan."""
    from pipelines.nightly import nightly

    plan, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    if plan["alarm"]:
        install_alarm(plan["alarm"])
    with out.open("w") as file:
        for night in plan["nights"]:
            if night.get("nudge"):
                nudge(Path(plan["model"]), night["nudge"])
            started = time.perf_counter()
            places = (plan["store"], plan["tracking"], "cpu")
            state: Any = nightly(plan["recipe"], night.get("set", {}), *places, return_state=True)
            told = {"name": state.name, "type": state.type.value, "message": state.message}
            file.write(json.dumps({**told, "seconds": time.perf_counter() - started}) + "\n")


if __name__ == "__main__":
    main()
