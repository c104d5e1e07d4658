"""`bitsmith prune`: delete what no kept build, no pin and no running build needs, and copies nobody uses any more."""

from __future__ import annotations

import argparse

from pipelines.scratch import tidy
from pipelines.settings import settings
from store.open import Store
from store.prune import Pruned, prune


def prune_store(options: argparse.Namespace) -> int:
    """Say what goes, or with --dry-run what would."""
    where = settings(options.store)
    pruned = prune(Store(where.store), keep_builds=options.keep_builds, dry_run=options.dry_run)
    tidied = tidy(where.cache, options.dry_run)
    verb = "would go" if options.dry_run else "gone"
    print(f"{verb} from {where.cache}: {tidied.files} unused file(s), {tidied.bytes:,} bytes")
    print("\n".join(lines(pruned)))
    return 0


def lines(pruned: Pruned) -> list[str]:
    """What to tell."""
    verb = "would go" if pruned.dry_run else "gone"
    told = [f"build {digest[:12]} {verb}" for digest in pruned.builds]
    if pruned.running:
        told.append(f"{pruned.running} build(s) run: traces, and all that is newer than these builds, stay")
    told.append(
        f"{verb}: {len(pruned.builds)} build(s), {len(pruned.traces)} trace(s), {len(pruned.artifacts)} artifact(s), "
        f"{len(pruned.objects)} object(s), {pruned.bytes:,} bytes"
    )
    return told
