"""The same build on two workers (Dask, Ray), and in four processes over one folder: byte for byte the local one."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from builds import build_and_tell, open_build, places, run_build, write_recipe
from stores import BUCKET

from pipelines import dask_workers, ray_workers
from pipelines.build import prepare
from pipelines.distribution import Cluster, Distribution
from pipelines.drive import Built
from pipelines.services import ServiceState
from schemas.errors import InputError
from schemas.report import Report
from store.fsck import fsck
from store.open import Store
from store.records import read_record

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SMALL: dict[str, Any] = {"formats": ["int2-g32", "int4-g64"], "distill": None, "budget": {"bits_per_weight": 3.6}}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Built]:
    """The recipe, and what one process makes of it."""
    folder = tmp_path_factory.mktemp("local")
    return folder / "recipe.yaml", run_build(open_build(folder, **SMALL))


@pytest.fixture
def reach_s3(s3: dict[str, Any]) -> dict[str, str]:
    """The environment in which botocore finds the loopback S3 by itself."""
    where = s3["client_kwargs"]
    return {
        "AWS_ACCESS_KEY_ID": s3["key"],
        "AWS_SECRET_ACCESS_KEY": s3["secret"],
        "AWS_DEFAULT_REGION": where["region_name"],
        "AWS_ENDPOINT_URL": where["endpoint_url"],
    }


def own_places(folder: Path) -> dict[str, str]:
    """A machine of its own, as far as folders go: home, state, cache and temporary files."""
    folder.mkdir()
    names = ("HOME", "BITSMITH_HOME", "XDG_CACHE_HOME", "TMPDIR")
    return {**dict.fromkeys(names, str(folder)), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def build_apart(services: ServiceState, recipe: Path, store: str, env: dict[str, str], *words: str) -> Report:
    """`bitsmith run` with the options that say where tasks run."""
    out = Path(env["BITSMITH_HOME"]) / "report.json"
    command = [BIN / "bitsmith", "run", recipe, "--store", store, "--json", out, *words]
    env = {**os.environ, **env, "PREFECT_API_URL": str(services.prefect_api_url)}
    done = subprocess.run(
        [str(w) for w in command], env=env, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return Report.model_validate_json(out.read_text())


def makers(s3: dict[str, Any], url: str) -> Counter[str]:
    """How many items each process computed, from the traces."""
    store = Store(url, options=s3)
    records = [read_record(store.folder, entry.path) for entry in store.folder.scan("traces")]
    return Counter(record["facts"]["process"] for record in records if record)


def need(runner: str) -> None:
    """Ray is an extra."""
    if runner == "ray":
        pytest.importorskip("prefect_ray")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.xdist_group("services")
@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_two_workers_over_s3_make_what_one_process_makes(
    runner: str,
    services: ServiceState,
    local: tuple[Path, Built],
    s3: dict[str, Any],
    reach_s3: dict[str, str],
    tmp_path: Path,
) -> None:
    need(runner)
    url = f"s3://{BUCKET}/two/{runner}/store"
    env = own_places(tmp_path / "here") | reach_s3 | {"BITSMITH_HOME": str(services.folder)}
    report = build_apart(services, local[0], url, env, "--runner", runner, "--workers", "2")
    assert report.packed.digest == local[1].outputs["packed"]["packed"]
    computed = {n.id: n.units_computed for n in report.nodes}
    assert computed == {r.id: r.units_computed for r in local[1].rows}
    assert len(makers(s3, url)) == 2


def damage(store: Path) -> None:
    """A third of the objects gets a wrong bit, a third is deleted."""
    for number, path in enumerate(sorted(p for p in (store / "objects").rglob("*") if p.is_file())):
        if number % 3 == 0:
            path.chmod(0o644)
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 4
            path.write_bytes(data)
        elif number % 3 == 1:
            path.unlink()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.xdist_group("services")
def test_workers_make_again_what_was_damaged(services: ServiceState, local: tuple[Path, Built], tmp_path: Path) -> None:
    """Whichever worker finds the damage, the makers of what is damaged run again, on any worker."""
    store = tmp_path / "store"
    shutil.copytree(local[0].parent / "state" / "store", store)
    damage(store)
    env = own_places(tmp_path / "here") | {"BITSMITH_HOME": str(services.folder)}
    changed = ("--set", "budget.bits_per_weight=3.2", "--runner", "dask", "--workers", "2")
    report = build_apart(services, local[0], str(store), env, *changed)
    expected = run_build(open_build(tmp_path / "other", **{**SMALL, "budget": {"bits_per_weight": 3.2}}))
    assert report.packed.digest == expected.outputs["packed"]["packed"]
    redone = {n.id for n in report.nodes if n.units_computed}
    assert redone & {"statistics", "reference", "scoring_reference", "scores"}, "what was made again is counted"


def of_session(leader: int) -> list[psutil.Process]:
    """Living processes that a command has started."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.xdist_group("services")
@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_ctrl_c_ends_the_workers_too_and_the_next_run_goes_on(
    runner: str, services: ServiceState, local: tuple[Path, Built], tmp_path: Path
) -> None:
    """What a terminal sends to all processes of a command, as soon as workers have computed something."""
    need(runner)
    store = Store(tmp_path / "store")
    env = {**os.environ, **own_places(tmp_path / "here"), "BITSMITH_HOME": str(services.folder)}
    command = [str(BIN / "bitsmith"), "run", str(local[0]), "--store", store.url, "--runner", runner, "--workers", "2"]
    with (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(command, env=env, cwd=ROOT, stderr=err, start_new_session=True)
        deadline = time.monotonic() + 300
        while len(store.traces.entries()) < 8:
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "err").read_text()[-3000:]
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        code = process.wait(120)
    said = (tmp_path / "err").read_text()
    assert code == 130 and said.rstrip().splitlines()[-1].startswith("interrupted"), said[-3000:]
    deadline = time.monotonic() + 60
    while left := of_session(process.pid):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    assert store.leases.holders() == {} and fsck(store).sound
    kept = len(store.traces.entries())
    assert 8 <= kept < sum(row.units_computed for row in local[1].rows)
    where = replace(places(tmp_path), store=store.url)
    again = run_build(prepare(str(local[0]), [], where, "cpu"))
    assert again.outputs["packed"] == local[1].outputs["packed"]
    assert sum(row.units_cached for row in again.rows) >= kept


@contextmanager
def dask_machines(folder: Path, env: dict[str, str], count: int) -> Iterator[str]:
    """A scheduler and workers, each worker with folders of its own; yields the scheduler's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scheduler = [BIN / "dask", "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    address = f"tcp://127.0.0.1:{port}"
    worker = [BIN / "dask", "worker", address, "--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard"]
    started = [subprocess.Popen([str(w) for w in scheduler], stderr=subprocess.DEVNULL)]
    try:
        for number in range(count):
            place = own_places(folder / f"machine{number}")
            started.append(
                subprocess.Popen(
                    [str(w) for w in worker],
                    env={**os.environ, **env, **place, "PYTHONPATH": str(ROOT)},
                    cwd=place["HOME"],
                    stderr=subprocess.DEVNULL,
                )
            )
        yield address
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(60)


def wait_for(address: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return Distribution("dask", address).check("some server")
        except InputError:
            assert time.monotonic() < deadline, "the Dask cluster did not come up"
            time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.xdist_group("services")
def test_workers_of_a_scheduler_need_no_folder_in_common(
    services: ServiceState, local: tuple[Path, Built], s3: dict[str, Any], reach_s3: dict[str, str], tmp_path: Path
) -> None:
    url = f"s3://{BUCKET}/apart/store"
    env = own_places(tmp_path / "here") | reach_s3
    with dask_machines(tmp_path, reach_s3, 2) as address:
        wait_for(address)
        report = build_apart(services, local[0], url, env, "--runner", "dask", "--scheduler", address)
    assert report.packed.digest == local[1].outputs["packed"]["packed"]
    assert len(makers(s3, url)) == 2


def test_four_processes_share_one_folder_and_compute_every_item_once(local: tuple[Path, Built], tmp_path: Path) -> None:
    write_recipe(tmp_path, **SMALL)
    context = multiprocessing.get_context("forkserver")  # torch is imported once, and nothing has run before the fork
    context.set_forkserver_preload(["transformers.models.llama.modeling_llama", "compressed_tensors.compressors"])
    outs = [tmp_path / f"outcome{i}.json" for i in range(4)]
    started = [context.Process(target=build_and_tell, args=(tmp_path, SMALL, out)) for out in outs]
    for process in started:
        process.start()
    for process in started:
        process.join(250)
    results = [json.loads(out.read_text()) for out in outs]
    expected = {r.id: r.units_computed for r in local[1].rows}
    assert {n: sum(counts[n] for _, counts in results) for n in expected} == expected
    assert all(outputs["packed"] == local[1].outputs["packed"] for outputs, _ in results)


def test_batches_keep_order_and_lose_nothing() -> None:
    labels = [f"l{i}" for i in range(33)]
    batches = Cluster().batches(labels)
    assert len(batches) == 6 and [label for batch in batches for label in batch] == labels
    assert Cluster().batches(labels[:2]) == [["l0"], ["l1"]]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Distribution(None, "tcp://127.0.0.1:1"), "--runner dask"),
        (Distribution("dask", "tcp://127.0.0.1:1", 2), "--scheduler or --workers"),
        (Distribution("dask", None, 0), "1 or more"),
        (Distribution("dask", "nonsense://x"), "no Dask scheduler answers"),
        (Distribution("dask", "tcp://127.0.0.1:9"), "no Dask scheduler answers"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused(
    wanted: Distribution, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_workers, "PATIENCE", 1.0)
    with pytest.raises(InputError, match=words):
        wanted.check("http://127.0.0.1:1/api")


@pytest.mark.parametrize("address", ["nonsense://x:1", "127.0.0.1", "ray://127.0.0.1:9", "127.0.0.1:9"])
def test_a_ray_cluster_that_does_not_answer(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_workers, "find_spec", lambda name: name)
    with pytest.raises(InputError, match="no Ray cluster answers"):
        Distribution("ray", address).check("http://127.0.0.1:1/api")


def test_ray_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_workers, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"\.\[ray\]"):
        Distribution("ray").check("http://127.0.0.1:1/api")


def test_workers_without_a_prefect_server_are_refused() -> None:
    with pytest.raises(InputError, match="bitsmith up"):
        Distribution("dask").check(None)
