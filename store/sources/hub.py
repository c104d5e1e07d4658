"""Models of the Hugging Face Hub, as folders of the user's own Hub cache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from schemas.errors import InputError
from store.sources.places import error_text
from store.sources.shards import no_safetensors

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "vocab*", "merges.txt", "LICENSE*", "NOTICE*"]
UNWANTED = ["*/*", "consolidated*"]  # other frameworks' and other layouts' copies of the same weights
SECONDS = 10.0  # to wait for the Hub's first answer; huggingface_hub itself waits for ever


def snapshot(source: str, revision: str | None) -> Path:
    """Folder of the model's snapshot, downloaded when it is not in the Hub cache; never pickles or code.

    Without an answer of the Hub a cached snapshot serves; without that, InputError.
    """
    from huggingface_hub import HfApi, snapshot_download

    where = f"{source}@{revision or 'main'}"
    filters: dict[str, Any] = {"allow_patterns": WANTED, "ignore_patterns": UNWANTED}
    try:
        info = HfApi().model_info(source, revision=revision, timeout=SECONDS)
    except Exception as error:  # offline, unreachable, gated, unknown: whichever, a cached snapshot serves
        return _cached(source, revision, where, filters, error)
    files = [s.rfilename for s in info.siblings or []]
    if not any(f.endswith(".safetensors") and "/" not in f for f in files):
        raise no_safetensors(where, files)
    try:
        return Path(snapshot_download(source, revision=revision, **filters))  # by name, so that it is found offline
    except Exception as error:
        raise _unavailable(where, error) from error


def _cached(source: str, revision: str | None, where: str, filters: dict[str, Any], error: Exception) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, revision=revision, local_files_only=True, **filters))
    except Exception:  # not cached, or not completely: what went wrong is that the Hub was needed
        raise _unavailable(where, error) from error


def _unavailable(where: str, error: Exception) -> InputError:
    return InputError(
        "model is neither a folder here, nor in the Hub cache, nor available from the Hub",
        where=where,
        got=error_text(error),
        wanted="a local folder, a Hub id that can be reached, or the URL of a folder",
        fix="check the spelling, the network and HF_HUB_OFFLINE; for a gated model run `hf auth login`",
    )
