"""fsck: read everything in a store, name what is not what it claims to be, and put it into quarantine."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from schemas.base import digest_of
from store.blobs import Blobs
from store.errors import Unavailable
from store.open import Store
from store.records import decode, is_sound, read_files
from store.remote import THREADS
from store.verified import quarantine, read_verified
from store.walk import parts

LOCAL_THREADS = 4
RECORDS = ("traces", "builds", "promoted", "champions", "pins")


@dataclass(frozen=True)
class Checked:
    """What fsck found.

    `bad`: paths of damaged files, in quarantine now if repaired. `dangling`: keys of traces none of whose outputs is
    whole; their steps run again. `incomplete`: artifacts that lack parts, as discarded scratch does. `conflicts`: keys
    for which a step once gave another result. `quarantined`: how many files are in quarantine, old ones included.
    """

    files: int
    bytes: int
    bad: tuple[str, ...]
    incomplete: tuple[str, ...]
    dangling: tuple[str, ...]
    conflicts: tuple[str, ...]
    quarantined: int

    @property
    def sound(self) -> bool:
        """Nothing is damaged, and every trace leads to something."""
        return not (self.bad or self.dangling)


def fsck(store: Store, *, repair: bool = True) -> Checked:
    """Verify every object, manifest, trace and record. `repair`: quarantine bad ones, so that they are made again."""
    store.check_ours()
    objects, manifests = _contents(store, store.blobs), _contents(store, store.artifacts.manifests)
    bad = [store.blobs.path(digest) for digest, sound in objects.items() if not sound]
    bad += [store.artifacts.manifests.path(digest) for digest, sound in manifests.items() if not sound]
    records = [entry.path for prefix in RECORDS for entry in store.folder.scan(prefix)]
    bad += [path for path, data in read_files(store.folder, records) if not _record_is_sound(store, path, data)]
    if repair:
        for path in bad:
            quarantine(store.folder, path)
    whole = _whole(store, {d for d, sound in manifests.items() if sound}, {d for d, sound in objects.items() if sound})
    bad_set, traces = set(bad), store.traces
    sound_traces = traces.get_many(key for key in traces.entries() if traces.path(key) not in bad_set)
    return Checked(
        files=len(objects) + len(manifests) + len(records),
        bytes=sum(entry.size for prefix in ("objects", "artifacts") for entry in store.folder.scan(prefix)),
        bad=tuple(sorted(bad)),
        incomplete=tuple(sorted(digest for digest, sound in manifests.items() if sound and digest not in whole)),
        dangling=tuple(sorted(key for key, each in sound_traces.items() if not whole & set(each.outputs.values()))),
        conflicts=tuple(sorted({entry.path.split("/")[1].split(".")[0] for entry in store.folder.scan("conflicts")})),
        quarantined=sum(1 for _ in store.folder.scan("quarantine")),
    )


def _contents(store: Store, blobs: Blobs) -> dict[str, bool]:
    """Whether each object is what its name says."""
    with ThreadPoolExecutor(LOCAL_THREADS if store.folder.root else THREADS) as pool:
        return dict(pool.map(partial(_content, blobs), [digest for digest, _ in blobs.list()]))


def _content(blobs: Blobs, digest: str) -> tuple[str, bool]:
    try:
        return digest, blobs.check(digest)
    except Unavailable:  # someone removed it meanwhile
        return digest, True


def _record_is_sound(store: Store, path: str, data: bytes) -> bool:
    """Whether a record is what was written, and a trace the one of its key."""
    record = decode(data)
    if record is None:
        again = read_verified(store.folder, path, is_sound)  # perhaps only the transfer was torn
        record = decode(again) if again else None
    if record is None or not path.startswith("traces/"):
        return record is not None
    key = record["key"]
    return bool(key == digest_of(record["document"]) and store.traces.path(key) == path)


def _whole(store: Store, manifests: Iterable[str], objects: set[str]) -> set[str]:
    """The artifacts that have all their objects and all their parts."""
    blobs = store.artifacts.manifests
    names = {blobs.path(digest): digest for digest in manifests}
    needs = {names[path]: parts(data) for path, data in read_files(store.folder, names)}
    whole = {digest for digest, (own, _) in needs.items() if own.keys() <= objects}
    while lacking := {digest for digest in whole if not needs[digest][1] <= whole}:
        whole -= lacking
    return whole
