"""`bitsmith fsck`: verify everything in a store; what is damaged goes to quarantine and is made again when needed."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from pipelines.commands.run import write_json
from pipelines.settings import settings
from store.fsck import Checked, fsck
from store.open import Store

DAMAGED = 1


def check_store(options: argparse.Namespace) -> int:
    """0 when everything is what it claims to be, else 1."""
    store = Store(settings(options.store).store)
    checked = fsck(store)
    if options.json is not None:
        write_json(options.json, {"store": store.url, "sound": checked.sound, **asdict(checked)})
    print("\n".join(lines(checked)))
    return 0 if checked.sound else DAMAGED


def lines(checked: Checked) -> list[str]:
    """What to tell. Artifacts that lack parts are no damage: a finished build discards its scratch."""
    told = [f"damaged, now in quarantine: {path}" for path in checked.bad]
    told += [f"trace without its outputs, its step will run again: {key}" for key in checked.dangling]
    told += [f"a step gave two results, it is not deterministic: key {key}" for key in checked.conflicts]
    told.append(f"{checked.files:,} files, {checked.bytes / 1e6:,.1f} MB read: {len(checked.bad)} damaged")
    if checked.incomplete:
        told.append(f"{len(checked.incomplete)} artifact(s) have discarded or lost parts")
    if checked.quarantined:
        told.append(f"{checked.quarantined} file(s) in quarantine; prune deletes them after 30 days")
    told.append("the store is sound" if checked.sound else "run the builds again: what was damaged is made again")
    return told
