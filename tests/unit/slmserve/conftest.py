# SPDX-License-Identifier: Apache-2.0
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from e2e.bench.serve_model import Geometry, build_model
from tests.unit.slmserve.process import ORDERS, ServerProcess

SLOW = Geometry(
    name="slow",
    layers=6,
    hidden=256,
    heads=4,
    kv_heads=2,
    head_size=64,
    feed_forward=1024,
    vocab=2048,
    context=32_768,
)


@pytest.fixture(scope="session", autouse=True)
def unconfined() -> Iterator[None]:
    """Commands that a test runs in its own process must not confine it: nothing takes a filter off again."""
    before = _filters()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLM_SANDBOX", "off")
        yield
    assert _filters() == before


def _filters() -> str:
    return Path(f"/proc/{os.getpid()}/status").read_text().partition("Seccomp:")[2].partition("Spec")[0]


@pytest.fixture(scope="session")
def orders_dir() -> Path:
    return ORDERS / "v1-int4"


@pytest.fixture(scope="session")
def orders_server(orders_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    identity = {
        "SLM_NAMESPACE": "shop",
        "SLM_DEPLOYMENT": "orders",
        "SLM_REVISION": "abc123",
        "SLM_VARIANT": "int4",
        "SLM_MODEL": "orders",
        "SLM_MODEL_VERSION": "v1",
        "SLM_NODE": "edge-1",
    }
    directory = tmp_path_factory.mktemp("orders")
    with ServerProcess(orders_dir, directory, environ=identity) as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="session")
def client(orders_server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{orders_server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def slow_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes many seconds for a full answer: time to leave, to drain, to queue."""
    return build_model(tmp_path_factory.mktemp("slow"), SLOW)
