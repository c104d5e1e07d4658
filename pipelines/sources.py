"""Open what comes from outside; `builtin:` names stand for what is shipped with Bitsmith."""

from __future__ import annotations

from pathlib import Path

from schemas.calibrate import ModelSource, TextSource
from schemas.errors import InputError
from store.models import SourceModel, open_model
from store.texts import Documents, read_documents

DEMO = Path(__file__).with_name("demo")
MODELS = {"builtin:demo": DEMO / "model"}
TEXTS = {"calibrate": DEMO / "calibrate.jsonl", "evaluate": DEMO / "evaluate.jsonl"}


def open_source_model(spec: ModelSource, cache: Path) -> SourceModel:
    """The original model, structurally checked; no weights are read."""
    if spec.source.startswith("builtin:"):
        if spec.source not in MODELS:
            raise InputError("no such built-in model", where="model.source", got=spec.source, wanted=", ".join(MODELS))
        spec = spec.model_copy(update={"source": str(MODELS[spec.source])})
    return open_model(spec, cache=cache)


def open_source_text(spec: TextSource, cache: Path) -> Documents:
    """The documents of a text source."""
    return read_documents(spec, cache=cache, builtins=TEXTS)
