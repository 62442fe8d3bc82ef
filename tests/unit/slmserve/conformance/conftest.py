# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.unit.slmserve.conformance.engines import ENGINES_UNDER_TEST, SLOTS, Served
from tests.unit.slmserve.process import ServerProcess


@pytest.fixture(scope="module", params=ENGINES_UNDER_TEST, ids=lambda entry: entry.engine)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    entry = request.param
    directory = tmp_path_factory.mktemp("conformance")
    flags = ("--model", "m", "--engine", entry.engine, "--slots", str(SLOTS), "--evaluate", "false")
    model_dir = entry.build(tmp_path_factory.mktemp("model"))
    with ServerProcess(model_dir, directory, *flags) as server:
        server.wait_ready(120)
        with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
            [model] = client.models.list().data
            context = (model.model_extra or {})["max_model_len"]
            yield Served(
                engine=entry.engine, server=server, client=client, context=context, lacks=entry.lacks
            )
