"""The page's server, asked over plain HTTP: who may do what, and what can be read."""

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from browsers import Served, serve
from pages import fill, made_up

from store.open import Store

EVIL = "<script>alert(1)</script>"
SECRET = "root of all secrets"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store beside a secret, with a packed artifact of two files, one of which becomes a link to the secret."""
    top = tmp_path_factory.mktemp("served")
    (top / "secret.txt").write_text(SECRET)
    store = fill(top / "store", 5)
    (top / "a.json").write_text("{}")
    (top / "b.bin").write_bytes(b"\x00" * 3000)
    packed = store.artifacts.save(files={"a.json": top / "a.json", "sub/b.bin": top / "b.bin"})
    report = made_up(4, packed={"path": "/x", "digest": packed}, recipe=EVIL, model=EVIL, notes=(EVIL,))
    store.builds.save(report.build_digest, report.model_dump(mode="json"))
    return top


@pytest.fixture(scope="module")
def page(folder: Path) -> Iterator[Served]:
    with serve(folder / "store", folder / "state", "--mlflow-url", "http://127.0.0.1:5000") as served:
        yield served


def ask(
    page: Served, path: str, method: str = "GET", body: Any = None, **headers: str
) -> tuple[int, str, dict[str, str]]:
    """Status, text and headers of an answer to exactly this path: nothing is normalised on the way."""
    connection = http.client.HTTPConnection(urlsplit(page.url).netloc, timeout=60)
    sent = {k.replace("_", "-"): v for k, v in headers.items()}
    data = None if body is None else json.dumps(body)
    connection.putrequest(method, path, skip_host="host" in sent)
    for name, value in sent.items():
        connection.putheader(name, value)
    if data is not None:
        connection.putheader("Content-Length", str(len(data)))
    connection.endheaders(None if data is None else data.encode())
    with closing(connection), connection.getresponse() as answer:
        return answer.status, answer.read().decode("utf-8", "replace"), {k.lower(): v for k, v in answer.getheaders()}


BUILD = f"/builds/{made_up(4).build_digest}"
JSON = {"content_type": "application/json"}


def test_it_answers_and_says_so(page: Served) -> None:
    assert ask(page, "/health")[:2] == (200, '{"status":"ok"}')


@pytest.mark.parametrize(
    "path", ["/", BUILD, f"{BUILD}/explore", "/live", f"/diff?a={BUILD[8:]}&b={made_up(2).build_digest}"]
)
def test_pages_run_nothing_that_a_recipe_says(page: Served, path: str) -> None:
    status, text, headers = ask(page, path)
    assert status == 200 and EVIL not in text and "alert(1)" not in text.replace("&lt;script&gt;alert(1)", "")
    assert (
        "script-src 'self'" in headers["content-security-policy"] and "unsafe" not in headers["content-security-policy"]
    )
    assert headers["x-content-type-options"] == "nosniff"


def test_only_loopback_names_are_answered(page: Served) -> None:
    assert ask(page, "/health", host="evil.example")[0] == 421
    assert ask(page, "/health", host="evil.example:8484")[0] == 421
    assert ask(page, "/health", host="localhost:1")[0] == 200


TRAVERSALS = [
    "/static/../security.py", "/static/%2e%2e/security.py", "/static/..%2fsecurity.py", "/static/%2e%2e%2fsecurity.py",
    "/static/..%5csecurity.py", "/static//etc/passwd", "/static/%2fetc%2fpasswd", "/static/..%252fsecurity.py",
    f"{BUILD}/packed/../../../secret.txt", f"{BUILD}/packed/%2e%2e%2f%2e%2e%2fsecret.txt",
    f"{BUILD}/packed/..%2f..%2f..%2fsecret.txt", f"{BUILD}/packed/%2fetc%2fpasswd", f"{BUILD}/packed//etc/passwd",
    f"{BUILD}/packed/sub/../../../../secret.txt", f"{BUILD}/packed/..%00", f"{BUILD}/packed/a.json%00.txt",
    "/digest/../../secret.txt", "/digest/..%2f..%2fsecret.txt", "/builds/..%2fsecret.txt", "/builds/../../secret.txt",
    f"/digest/{'0' * 63}%2f/files/a", "/builds/%2e%2e/report.json", "/../secret.txt", "//secret.txt",
]  # fmt: skip


@pytest.mark.parametrize("path", TRAVERSALS)
def test_nothing_outside_the_store_is_read(page: Served, path: str) -> None:
    status, text, _ = ask(page, path)
    assert status in (400, 404, 405) and SECRET not in text and "root:" not in text and "import " not in text


def test_listed_files_are_handed_out_whole(page: Served) -> None:
    status, text, headers = ask(page, f"{BUILD}/packed/{quote('sub/b.bin')}")
    assert (status, len(text)) == (200, 3000)
    assert headers["content-disposition"] == "attachment; filename*=UTF-8''b.bin"


def test_a_link_in_the_store_leads_nowhere(page: Served, folder: Path) -> None:
    store = Store(folder / "store")
    rows = store.artifacts.load(json.loads(ask(page, f"{BUILD}/report.json")[1])["packed"]["digest"]).files.rows
    path = folder / "store" / store.blobs.path(rows["a.json"]["digest"])
    assert ask(page, f"{BUILD}/packed/a.json")[0] == 200
    kept = path.read_bytes()
    for target in (folder / "secret.txt", folder / "copy.json"):  # other content, and the very same
        (folder / "copy.json").write_bytes(kept)
        path.unlink()
        path.symlink_to(target)
        status, text, _ = ask(page, f"{BUILD}/packed/a.json")
        assert status in (403, 410) and SECRET not in text
    path.unlink()
    path.write_bytes(kept)


CHANGES = [
    ("POST", f"/api{BUILD}/promote", {"promoted": True}),
    ("POST", "/api/pins", {"name": "kept", "digest": BUILD[8:]}),
    ("DELETE", "/api/pins/kept", None),
    ("POST", "/api/runs", {"recipe": "name: x"}),
    ("POST", "/api/runs/0/stop", {}),
]


@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
def test_changes_need_the_token(page: Served, method: str, path: str, body: Any) -> None:
    assert ask(page, path, method, body, **JSON)[0] == 401
    assert ask(page, path, method, body, **JSON, x_bitsmith_token=page.token[:-1])[0] == 401
    assert ask(page, f"{path}?token={page.token}", method, body, **JSON)[0] == 401
    elsewhere = {"origin": "http://evil.example", "x_bitsmith_token": page.token}
    assert ask(page, path, method, body, **JSON, **elsewhere)[0] == 403
    assert ask(page, path, method, body, content_type="text/plain", x_bitsmith_token=page.token)[0] == 415


def test_the_token_is_in_no_page_and_only_its_owner_reads_it(page: Served, folder: Path) -> None:
    assert page.token not in "".join(ask(page, path)[1] for path in ("/", BUILD, "/live", "/static/frame.js"))
    file = folder / "state" / "ui-token"
    assert file.read_text().strip() == page.token and file.stat().st_mode & 0o077 == 0


def test_pins_are_set_and_dropped_by_the_command_line(page: Served, folder: Path) -> None:
    given = {**JSON, "x_bitsmith_token": page.token}
    status, text, _ = ask(page, "/api/pins", "POST", {"name": "kept", "digest": BUILD[8:]}, **given)
    assert status == 200 and Store(folder / "store").builds.pins() == {"kept": BUILD[8:]}
    assert ask(page, "/api/pins/kept", "DELETE", **given)[0] == 200
    status, text, _ = ask(page, "/api/pins/kept", "DELETE", **given)
    assert status == 422 and "no such pin" in text
    assert ask(page, "/api/pins", "POST", {"name": "../x", "digest": BUILD[8:]}, **given)[0] == 422


def test_what_is_not_there_is_a_page_that_says_so(page: Served) -> None:
    for path, said in (
        (f"/builds/{'0' * 12}", "No build"),
        (f"/digest/{'0' * 64}", "knows nothing"),
        ("/nothing", "404"),
    ):
        status, text, _ = ask(page, path)
        assert status == 404 and said in text
    assert ask(page, "/api/builds/xyz/reasons")[0] == 404


def test_the_report_may_run_nothing(page: Served) -> None:
    status, text, headers = ask(page, f"{BUILD}/report.html")
    assert status == 200 and "<script" not in text
    assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert ask(page, f"{BUILD}/allocation.csv")[1].startswith("unit,format,bytes,score\nlayers.0.self_attn.qkv,")


@pytest.mark.parametrize(
    ("options", "said"), [(["--host", "0.0.0.0"], "--allow-remote"), (["--port", "1"], "cannot listen")]
)
def test_other_hosts_and_taken_ports_are_refused(tmp_path: Path, page: Served, options: list[str], said: str) -> None:
    taken = str(urlsplit(page.url).port)
    command = [sys.executable, "-m", "ui", "--state", str(tmp_path), *(taken if o == "1" else o for o in options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and said in done.stderr and not (tmp_path / "ui-token").exists()


def test_the_page_starts_without_torch_prefect_and_mlflow() -> None:
    code = (
        "import sys; from pathlib import Path; from ui.app import create_app; from ui.site import open_site; "
        "create_app(open_site('/nowhere', Path('/nowhere'), 'x' * 32)); "
        "heavy = {'torch', 'transformers', 'prefect', 'mlflow', 'fsspec', 'numpy', 'pipelines', 'steps'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.strip() == "[]"
