# SPDX-License-Identifier: Apache-2.0
"""spec.adaptation and status.adaptation as they are stored: defaults, bounds, and what stays small."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from slmops.api import SLMDeploymentSpec, SLMDeploymentStatus
from slmops.api.adaptation import MAX_SITES, Adaptation
from slmops.api.adaptation_status import (
    MAX_TRIED,
    MESSAGE_LIMIT,
    AdaptationStatus,
    SiteAdaptationStatus,
    SiteAdapter,
)
from slmops.api.crd import build_crd
from slmwire.examples import REDACTIONS
from tests.unit.planning.fleet_spec import spec_body


def test_with_sites_alone_everything_has_a_value() -> None:
    found = Adaptation(sites=["north"])
    assert (found.name, found.collect.retention, found.training.cooldown) == ("local", "168h", "24h")
    assert tuple(found.collect.redact) == REDACTIONS
    assert found.training.resources.requests.to_body() == {"cpu": "100m", "memory": "256Mi"}
    assert found.training.min_examples == 100
    assert (found.gates.min_gain, found.gates.max_quality_loss) == ("0.05", "0.02")


@pytest.mark.parametrize(
    "body",
    [
        {"sites": []},
        {"sites": [f"s{index}" for index in range(MAX_SITES + 1)]},
        {"sites": ["two words"]},
        {"sites": ["a"], "collect": {"maxExamples": 9}},
        {"sites": ["a"], "collect": {"redact": ["Name"]}},
        {"sites": ["a"], "collect": {"patterns": [""]}},
        {"sites": ["a"], "gates": {"minGain": "5%"}},
        {"sites": ["a"], "name": "Local"},
    ],
)
def test_what_is_out_of_bounds_does_not_parse(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Adaptation.model_validate(body)


def test_status_of_all_sites_stays_small_and_is_read_as_it_was_written() -> None:
    adapter = SiteAdapter(
        sha256="a" * 64, size=1 << 30, base_digest=f"sha256:{'b' * 64}", trained_at="2025-06-15T12:00:00Z"
    )
    sites = [
        SiteAdaptationStatus(
            site=f"{index:02}" + "s" * 61,
            phase="Accepted",
            message="m" * MESSAGE_LIMIT,
            node="n" * 60,
            tried=["n" * 60] * MAX_TRIED,
            before="0.1234",
            after="0.9",
            waiting=adapter,
            adapter=adapter,
            previous=adapter,
        )
        for index in range(MAX_SITES)
    ]
    status = SLMDeploymentStatus(adaptation=AdaptationStatus(train_token="t" * 256, sites=sites))
    text = json.dumps(status.to_body())
    assert len(text) < 100_000
    assert SLMDeploymentStatus.model_validate(json.loads(text)) == status


def test_a_status_from_before_has_no_adaptation_and_none_is_written() -> None:
    assert "adaptation" not in SLMDeploymentStatus().to_body()
    assert SLMDeploymentSpec.model_validate(spec_body()).adaptation is None


def test_the_api_server_knows_the_rules() -> None:
    text = json.dumps(build_crd())
    for part in (
        "adaptation needs placement.mode PerNode",
        "action TrainAdapter needs adaptation",
        "no adapter can be called base",
        "at most one adapter can be the default",
        "must be from 1h to 8760h",
    ):
        assert part in text, part
