"""Source models: a Hugging Face folder, a Hub id or the URL of a folder, opened by reading headers only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from schemas.base import digest_of
from schemas.calibrate import ModelSource
from schemas.errors import InputError
from schemas.structure import EMBEDDING, HEAD, expected_shapes, is_tied
from store.sources.files import LazyFiles, file_names
from store.sources.fit import check_fit, check_unquantized
from store.sources.hub import HUB_ID, snapshot
from store.sources.json_object import json_object
from store.sources.places import LocalPlace, Place
from store.sources.remote import locate
from store.sources.shards import Shards, read_shards
from store.sources.tensor_bytes import DTYPES, LazyTensors, TensorBytes

CONFIG = "config.json"


def open_model(source: ModelSource, cache: Path | None = None) -> SourceModel:
    """The model at a source, checked as far as config, index and headers go (`SourceModel.check`); no weights read.

    `cache` is a folder of ours: remembered digests, and what is fetched from a remote folder. Hub snapshots stay in
    the user's own Hub cache.
    """
    place, name = _place(source)
    where = f"{place.where}/{CONFIG}"
    if CONFIG not in place.names():
        raise InputError("no config.json", where=place.where, fix="point at the folder of a Hugging Face model")
    config = json_object(place.read(CONFIG), where)
    config.pop("_name_or_path", None)  # where somebody once loaded it from, not content
    shapes = expected_shapes(config, where)
    check_unquantized(config, where)
    model = SourceModel(place, config, name, shapes, read_shards(place), cache)
    model.check()
    return model


def _place(source: ModelSource) -> tuple[Place, str]:
    """Where the model is, and its name for people. A local folder goes before a Hub id of the same spelling."""
    if HUB_ID.fullmatch(source.source) and not Path(source.source).exists():
        return LocalPlace(snapshot(source.source, source.revision)), source.source
    if source.revision is not None:
        raise InputError(
            "a revision was given for a folder",
            where=source.source,
            got=source.revision,
            wanted="revisions only with Hub ids",
            fix="remove the revision, or the local folder of that name",
        )
    place, file = locate(source.source)
    if file is not None:
        raise InputError("a model is a folder, not a file", where=source.source, fix="give the folder that holds it")
    return place, place.name


@dataclass(frozen=True, eq=False)
class SourceModel:
    """A model as a Value; `shapes` are those that the architecture has, in its order."""

    place: Place
    config: dict[str, Any]
    name: str
    shapes: dict[str, tuple[int, ...]]
    shards: Shards
    cache: Path | None

    @cached_property
    def meta(self) -> Mapping[str, Any]:
        """config, shapes and dtypes by parameter name (no `lm_head.weight` when tied), and the name for people."""
        spans = self.shards.spans
        return {
            "config": self.config,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "dtypes": {name: DTYPES[spans[name].dtype] for name in self.shapes},
            "name": self.name,
        }

    @cached_property
    def tensor_digests(self) -> TensorBytes:
        """sha256 of each tensor's bytes, computed when asked for and remembered."""
        return TensorBytes(self.place, self.shards, self.cache)

    @cached_property
    def tensors(self) -> LazyTensors:
        """All parameters, lazily."""
        return LazyTensors(self.tensor_digests, tuple(self.shapes))

    @property
    def children(self) -> Mapping[str, Any]:
        """None."""
        return {}

    @cached_property
    def files(self) -> LazyFiles:
        """config, tokenizer, generation settings, licence; neither weights nor code nor the model card."""
        return LazyFiles(self.place, file_names(self.place), self.cache)

    @property
    def file_digests(self) -> Mapping[str, str]:
        """sha256 of each file as of when it was first read."""
        return self.files.digests

    @cached_property
    def digest(self) -> str:
        """sha256 over config, tensors and files; neither place nor sharding nor dates."""
        return self.content_digest(self.shapes, files=True)

    @cached_property
    def facts_digest(self) -> str:
        """sha256 over config and all shapes and dtypes; taken once, for a mixture has tens of thousands of views."""
        return digest_of({key: self.meta[key] for key in ("config", "shapes", "dtypes")})

    def content_digest(self, names: Iterable[str], files: bool) -> str:
        """sha256 over config, all shapes and dtypes, these tensors' bytes, and the files when asked."""
        document: dict[str, Any] = {"facts": self.facts_digest, "tensors": self.tensor_digests.digests(names)}
        if files:
            document["files"] = {name: digest for name, digest in self.file_digests.items() if name != CONFIG}
        return digest_of(document)

    @cached_property
    def _rank(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.shapes)}

    def view(self, names: Iterable[str], files: bool = False) -> ModelView:
        """The model with only these tensors (and its files when asked); KeyError for a name it does not have."""
        wanted = set(names)
        if unknown := wanted - self.shapes.keys():
            raise KeyError(min(unknown))
        return ModelView(self, tuple(sorted(wanted, key=self._rank.__getitem__)), files)

    def check(self) -> None:
        """Raise InputError unless the headers hold exactly the architecture's parameters; reads weights only to
        compare a head that the config ties with the embedding it is tied to."""
        where, spans = self.place.where, self.shards.spans
        check_fit(self.config, self.shapes, spans, where)
        if not is_tied(self.config) or HEAD not in spans:
            return
        digests = self.tensor_digests.digests([EMBEDDING, HEAD])
        if digests[EMBEDDING] != digests[HEAD]:
            raise InputError(
                "config ties the head to the embedding, but the checkpoint has a different head",
                where=f"{where}: {HEAD}",
                fix="set tie_word_embeddings to false in config.json, or remove the head from the checkpoint",
            )


@dataclass(frozen=True, eq=False)
class ModelView:
    """Some tensors of a model, as a Value with a digest of its own: config, shapes, dtypes and these tensors.

    `meta` is the whole model's; `meta["name"]` is in no digest, so nothing computed may depend on it.
    """

    model: SourceModel
    names: tuple[str, ...]
    with_files: bool

    @property
    def meta(self) -> Mapping[str, Any]:
        """Facts of the whole model."""
        return self.model.meta

    @cached_property
    def tensors(self) -> LazyTensors:
        """These tensors, lazily."""
        return LazyTensors(self.model.tensor_digests, self.names)

    @property
    def children(self) -> Mapping[str, Any]:
        """None."""
        return {}

    @property
    def files(self) -> Mapping[str, Path]:
        """Files of the model, when the view was made with them."""
        return self.model.files if self.with_files else {}

    @cached_property
    def digest(self) -> str:
        """sha256 over the content of this view; hashes only its own tensors."""
        return self.model.content_digest(self.names, self.with_files)
