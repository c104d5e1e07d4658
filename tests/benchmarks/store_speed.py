"""What the store costs: against plain files with sha256, per unit, and per key looked up.

    python tests/benchmarks/store_speed.py [FOLDER]

Prints ratios of plain time to ours (1.00: as fast; 0.70 is the floor that we hold ourselves to), each of the fastest of
several interleaved turns, because a shared machine only ever slows things down.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from stores import open_store, put_trace, trace_of

from store.open import Store

SIZE, PAIRS, UNITS, KEYS = 256 << 20, 7, 512, 5000


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call, on a disk that has nothing else to write (an fsync waits for its neighbours' data too)."""
    os.sync()
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def plain_write(path: Path, data: bytes) -> None:
    """The yardstick: sha256 and one write, nothing durable, nothing atomic."""
    hashlib.sha256(data).hexdigest()
    path.write_bytes(data)


def pair(store: Store, folder: Path) -> dict[str, tuple[float, float]]:
    """Plain seconds and ours, for each operation, on fresh data."""
    data, path = os.urandom(1 << 20) * (SIZE >> 20), folder / "plain"
    times = {"put bytes": (seconds(lambda: plain_write(path, data)), seconds(lambda: store.blobs.put(data)))}
    digest = hashlib.sha256(data).hexdigest()
    reading = seconds(lambda: hashlib.sha256(path.read_bytes()).hexdigest())
    times["get bytes"] = (reading, seconds(lambda: store.blobs.get(digest)))
    store.blobs.delete(digest)
    copying = seconds(lambda: plain_write(folder / "copy", path.read_bytes()))
    times["put file"] = (copying, seconds(lambda: store.blobs.put_file(path)))
    store.blobs.delete(digest)
    tensor = torch.frombuffer(bytearray(data), dtype=torch.bfloat16)
    writing = seconds(lambda: plain_write(path, data))
    times["save tensor"] = (writing, seconds(lambda: store.artifacts.save(tensors={"w": tensor})))
    loaded = store.artifacts.load(store.artifacts.save(tensors={"w": tensor}))
    times["read tensor"] = (reading, seconds(lambda: loaded.tensors["w"]))
    store.artifacts.discard(loaded.digest)
    return times


def units(store: Store, numbers: range) -> None:
    """Save what a small unit leaves (six tensors of 1 to 4 KiB) and its trace."""
    for number in numbers:
        tensors = {f"{m}.{part}": torch.full((1024,), number + m) for m in range(3) for part in ("codes", "scale")}
        put_trace(store, trace_of(number, {"o": store.artifacts.save({"unit": number}, tensors)}))


def main() -> None:
    """Print everything."""
    folder = Path(tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else None))
    try:
        store = open_store("local", folder)
        pairs = [pair(store, folder) for _ in range(PAIRS)]
        for name in pairs[0]:
            plain, ours = (min(times) for times in zip(*(each[name] for each in pairs), strict=True))
            print(f"{name:12} {SIZE >> 20} MiB: {plain / ours:.2f} of the speed of plain file and sha256")
        print(f"unit, durable at once: {seconds(lambda: units(store, range(64))) / 64 * 1e3:.2f} ms")
        with store.batch():
            print(
                f"unit, in a batch: {seconds(lambda: units(store, range(10**4, 10**4 + UNITS))) / UNITS * 1e3:.2f} ms"
            )
        traces = [trace_of(10**6 + number, {"o": "a" * 64}) for number in range(KEYS)]
        store.traces.put_many(traces)
        keys = [trace.key for trace in traces]
        hit, missed = (
            seconds(lambda keys=each: store.traces.get_many(keys)) for each in (keys, ["f" + k[1:] for k in keys])
        )
        print(f"{KEYS} traces looked up: {hit:.2f} s; {KEYS} absent ones: {missed:.2f} s")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
