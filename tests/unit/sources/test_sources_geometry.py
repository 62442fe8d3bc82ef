# SPDX-License-Identifier: Apache-2.0
"""The geometry of a model is read along with its files, with the source's own credentials."""

import hashlib
import json
from typing import Any

import pytest

from slmops.api.source import Source
from slmops.model.geometry import MAX_GEOMETRY_BYTES, Geometry
from slmops.ports.sources import SourceResolver
from tests.unit.slmfetch.origin import Origin

GENAI = {
    "model": {
        "context_length": 512,
        "decoder": {"num_hidden_layers": 2, "num_key_value_heads": 1, "head_size": 8},
    }
}
EXPECTED = Geometry(layers=2, kv_heads=1, head_size=8, context_length=512)


def put(origin: Origin, **contents: bytes) -> Source:
    """A manifest with these files (`__` stands for a dot) beside it."""
    rows = []
    for name, body in contents.items():
        path = name.replace("__", ".")
        origin.files[f"/m/{path}"] = body
        rows.append({"path": path, "size": len(body), "sha256": hashlib.sha256(body).hexdigest()})
    origin.files["/m/slm-manifest.json"] = json.dumps({"files": rows}).encode()
    return Source.model_validate({"http": {"url": f"{origin.url}/m/slm-manifest.json"}})


async def test_it_is_read_from_the_configuration_of_the_model(
    origin: Origin, resolver: SourceResolver
) -> None:
    source = put(origin, model__onnx=b"x", genai_config__json=json.dumps(GENAI).encode(), config__json=b"{}")
    assert (await resolver.resolve(source)).geometry == EXPECTED


@pytest.mark.parametrize(
    "contents",
    [
        {"model__gguf": b"x"},
        {"genai_config__json": b"{"},
        {"genai_config__json": b" " * (MAX_GEOMETRY_BYTES + 1)},
    ],
    ids=["none", "broken", "large"],
)
async def test_without_it_the_files_are_known_all_the_same(
    contents: dict[str, Any], origin: Origin, resolver: SourceResolver
) -> None:
    resolved = await resolver.resolve(put(origin, **contents))
    assert resolved.geometry is None and len(resolved.manifest.files) == 1


@pytest.mark.parametrize("body", [None, b"{}"], ids=["gone", "changed"])
async def test_a_file_that_is_not_what_was_resolved_tells_nothing(
    body: bytes | None, origin: Origin, resolver: SourceResolver
) -> None:
    source = put(origin, genai_config__json=json.dumps(GENAI).encode())
    if body is None:
        del origin.files["/m/genai_config.json"]
    else:
        origin.files["/m/genai_config.json"] = body + b" " * (len(json.dumps(GENAI)) - len(body))
    assert (await resolver.resolve(source)).geometry is None
