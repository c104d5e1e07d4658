"""Fixtures shared by all floors; what makes the models is in tests/support/models.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_tokens, tiny_value, write_model
from stores import moto_server

from pipelines.determinism import fix_order_of_sums
from pipelines.services import ServiceState, down, up
from steps.step import Output

ROOT = Path(__file__).resolve().parents[1]
fix_order_of_sums()


@pytest.fixture(scope="session")
def tiny_model() -> Output:
    """A random 3-block Llama as a model Value, fp32, untied. Read only."""
    return tiny_value()


@pytest.fixture(scope="session")
def tokens() -> Output:
    """Six ragged windows of at most 16 tokens out of three documents. Read only."""
    return tiny_tokens()


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """The Hugging Face folder of a random 3-block Llama in bf16, tied, in two shards, with a tokenizer."""
    return write_model(tmp_path / "tiny", tiny_value(tied=True, dtype=torch.bfloat16), shards=2)


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, Any]]:
    """Options to open `s3://bitsmith/...` on a loopback server."""
    with moto_server() as options:
        yield options


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceState]:
    """What `bitsmith up` starts, with Bitsmith's own deployments, in a state folder of its own; started once."""
    folder = tmp_path_factory.mktemp("services")
    try:
        yield up(ROOT, folder, say=lambda line: None)
    finally:
        down(folder, say=lambda line: None)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under xdist's loadgroup, tests of one file stay in one process and in order, unless they name another group."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(str(item.path)))
