# SPDX-License-Identifier: Apache-2.0
"""What a signature policy takes, refuses and leaves alone."""

from dataclasses import replace
from typing import Any

import pytest

from slmops.api import SLMDeploymentSpec
from slmops.model.config import OperatorConfig
from slmops.model.observed import Resolved, ResolveFailure, SignatureCheck
from slmops.planning import build
from slmops.planning.conditions import say_resolved, say_signed
from slmops.planning.names import Names
from slmops.planning.resolution import Resolution, resolve
from slmops.planning.revision import (
    Revision,
    build_revision_data,
    parse_revision,
    resolution_key,
    revision_of,
)
from slmwire.manifest import Manifest, ManifestFile
from slmwire.reasons import Reason

PEM = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"
FILES = Manifest(files=(ManifestFile(path="a", size=1, sha256="0" * 64, url="http://x/a"),))
GOOD = SignatureCheck(text="sig", key="sha256:1")
BAD = SignatureCheck(text="sig", error="a has other content")
LOST = ResolveFailure(reason=Reason.SOURCE_UNAVAILABLE, message="away", retry_at=5.0)


def spec_of(signature: dict[str, Any] | None = None, *, keys: tuple[str, ...] = (PEM,)) -> SLMDeploymentSpec:
    model: dict[str, Any] = {"name": "chat", "version": "1"}
    if signature is not None:
        model["signature"] = {"publicKeys": list(keys)} | signature
    return SLMDeploymentSpec.model_validate(
        {
            "model": model,
            "variants": [{"name": "int4", "source": {"http": {"url": "http://x/m.json"}}}],
            "placement": {"nodeSelector": {}},
        }
    )


REQUIRE, WARN, NONE = spec_of({}), spec_of({"policy": "Warn"}), spec_of()
REVISION = revision_of(NONE, {"int4": FILES.digest})


def found(check: SignatureCheck | None) -> Resolved:
    return Resolved(manifest=FILES, reference="r", signature=check)


def stored(check: SignatureCheck | None) -> Revision:
    resolved = {"int4": found(check)}
    templates = build.build_templates(
        Names("edge", "chat"),
        NONE,
        config=OperatorConfig(runtime_image="runtime:1"),
        revision=REVISION,
        digests={"int4": FILES.digest},
        references={"int4": "r"},
    )
    return parse_revision(REVISION, 1, build_revision_data(NONE, resolved=resolved, templates=templates))


def judge(
    spec: SLMDeploymentSpec, outcome: Resolved | ResolveFailure | None, *history: Revision, **standing: str
) -> Resolution:
    key = resolution_key(spec.variants[0].source, spec.model.signature)
    outcomes = {key: outcome} if outcome is not None else {}
    return resolve(spec, outcomes=outcomes, stored=history, **standing)


def test_signatures_are_no_part_of_the_revision() -> None:
    for spec in (REQUIRE, WARN, spec_of({"file": "other.sig"})):
        assert revision_of(spec, {"int4": FILES.digest}) == REVISION


def test_other_keys_ask_again() -> None:
    specs = [
        NONE,
        REQUIRE,
        WARN,
        spec_of({}, keys=(PEM + "\n",)),
        spec_of({"file": "o"}),
        spec_of({"inline": ["x"]}),
    ]
    assert len({resolution_key(s.variants[0].source, s.model.signature) for s in specs}) == len(specs)


@pytest.mark.parametrize(
    ("spec", "outcome", "taken", "status", "reason"),
    [
        (REQUIRE, found(GOOD), True, "True", "Verified"),
        (REQUIRE, None, False, "Unknown", "Verifying"),
        (REQUIRE, LOST, False, "Unknown", "Verifying"),
        (REQUIRE, replace(LOST, reason=Reason.SIGNATURE_INVALID), False, "False", "SignatureInvalid"),
        (WARN, found(GOOD), True, "True", "Verified"),
        (WARN, found(BAD), True, "False", "SignatureInvalid"),
        (WARN, LOST, False, "Unknown", "Verifying"),
    ],
)
def test_a_new_model(
    spec: SLMDeploymentSpec, outcome: Resolved | ResolveFailure | None, taken: bool, status: str, reason: str
) -> None:
    resolution = judge(spec, outcome)
    assert resolution.revision == (REVISION if taken else "")
    says = say_signed(spec, resolution)
    assert says is not None and (says.status, says.reason) == (status, reason)
    resolved = say_resolved(resolution)
    assert (resolved.status == "True") == taken
    if reason == "SignatureInvalid" and not taken:
        assert resolved.reason == "SignatureInvalid" and "left alone" in resolved.message


@pytest.mark.parametrize("outcome", [None, LOST, found(BAD)])
def test_what_is_stable_is_left_alone(outcome: Resolved | ResolveFailure | None) -> None:
    resolution = judge(REQUIRE, outcome, stored(GOOD), stable=REVISION)
    assert resolution.revision == REVISION and say_resolved(resolution).status == "True"
    says = say_signed(REQUIRE, resolution)
    assert says is not None
    if outcome == found(BAD):
        assert says.status == "False" and "left alone" in says.message
    else:
        assert says.status == "Unknown"


@pytest.mark.parametrize(("outcome", "taken"), [(None, True), (LOST, True), (found(BAD), False)])
def test_what_is_rolled_out_stops_only_for_a_signature_that_does_not_hold(
    outcome: Resolved | ResolveFailure | None, taken: bool
) -> None:
    resolution = judge(REQUIRE, outcome, stored(GOOD), rolling=REVISION)
    assert resolution.revision == (REVISION if taken else "")


@pytest.mark.parametrize(
    ("outcome", "taken"), [(None, False), (LOST, False), (found(BAD), False), (found(GOOD), True)]
)
def test_going_back_to_an_earlier_revision_is_judged_by_the_present_keys(
    outcome: Resolved | ResolveFailure | None, taken: bool
) -> None:
    resolution = judge(REQUIRE, outcome, stored(None), stable="another")
    assert resolution.revision == (REVISION if taken else "")


def test_a_stored_revision_is_checked_without_the_source() -> None:
    (request,) = judge(REQUIRE, None, stored(GOOD)).requests
    assert request.known is not None and request.known.manifest == FILES
    assert request.known.signature == SignatureCheck(text="sig")
    assert request.signature == REQUIRE.model.signature


def test_a_check_of_other_files_does_not_count() -> None:
    other = Manifest(files=(ManifestFile(path="a", size=2, sha256="1" * 64),))
    resolution = judge(REQUIRE, replace(found(GOOD), manifest=other), stored(GOOD), stable="another")
    assert resolution.revision == "" and len(resolution.requests) == 1


def test_without_a_policy_nothing_is_said() -> None:
    resolution = judge(NONE, found(None))
    assert resolution.revision == REVISION and say_signed(NONE, resolution) is None
