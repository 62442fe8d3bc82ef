# SPDX-License-Identifier: Apache-2.0
"""What spec.adaptation makes of a spec: classes of nodes, variants, pods, Jobs, policies; what is refused."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.api import SLMDeploymentSpec
from slmops.api.base import NAME_PATTERN
from slmops.model.config import NetworkConfig, OperatorConfig
from slmops.model.observed import NodeView, Resolved
from slmops.planning import build
from slmops.planning.adaptation_jobs import TrainPlace, build_order, build_train_job, train_job_name
from slmops.planning.adapters import build_trained, find_problem
from slmops.planning.effective import EffectiveVariant, find_rule, rules_of
from slmops.planning.expand import MAX_NAME_LENGTH, ExpansionError, expand_spec
from slmops.planning.expand_limits import MAX_VARIANTS
from slmops.planning.names import Names
from slmops.planning.network import apply_policies, policy_names
from slmops.planning.resolution import resolve
from slmops.planning.revision import Revision, build_revision_data, parse_revision, source_hash
from slmops.planning.validate_adaptation import find_adaptation_problem
from slmwire.examples import parse_settings
from slmwire.jobs import TrainOrder, parse_order
from slmwire.manifest import STORE_URL
from tests.unit.planning.profile_kit import body_of, files, profile, variant

NAMES = Names("shop", "orders")
CONFIG = OperatorConfig(runtime_image="slmops/runtime:test", optimizer_image="slmops/optimizer:test")
ONNX = files(("model.onnx", 100), ("genai_config.json", 10))
GGUF = files(("model.gguf", 100))


def spec_of(**changes: Any) -> SLMDeploymentSpec:
    """North takes part."""
    body = body_of(variant("int4", "800Mi"), **{"adaptation": {"sites": ["north"]}} | changes)
    return SLMDeploymentSpec.model_validate(body)


def known(spec: SLMDeploymentSpec, found: Resolved = ONNX) -> dict[str, Resolved]:
    return {source_hash(entry.source): found for entry in spec.variants}


def expanded(spec: SLMDeploymentSpec, found: Resolved = ONNX, **options: Any) -> SLMDeploymentSpec:
    return expand_spec(spec, known=known(spec, found), **options)


def named(spec: SLMDeploymentSpec) -> dict[str, EffectiveVariant]:
    return {entry.name: entry for entry in spec.variants if isinstance(entry, EffectiveVariant)}


def override_at(spec: SLMDeploymentSpec, **labels: str) -> str:
    rule = find_rule(rules_of(spec), labels)
    return rule.override_name if rule is not None else ""


def trained(base: Resolved = ONNX) -> dict[str, Any]:
    adapter = build_trained(name="local", sha256="a" * 64, size=4096, base_digest=base.manifest.digest)
    return {"north": adapter}


def revision_of(spec: SLMDeploymentSpec, found: Resolved = ONNX) -> Revision:
    """As it is stored and read again."""
    outcome = resolve(spec, outcomes=known(spec, found), stored=())
    templates = build.build_templates(
        NAMES,
        spec,
        config=CONFIG,
        revision=outcome.revision,
        digests={name: entry.manifest.digest for name, entry in outcome.resolved.items()},
        references={name: entry.reference for name, entry in outcome.resolved.items()},
    )
    data = build_revision_data(spec, resolved=outcome.resolved, templates=templates)
    return parse_revision(outcome.revision, 1, json.loads(json.dumps(data)))


# Classes


def test_each_override_that_counts_at_the_site_counts_there_under_another_name() -> None:
    overrides = [
        {"name": "small", "nodeSelector": {"matchLabels": {"size": "s"}}, "runtime": {"slots": 1}},
        {"name": "both", "sites": ["north", "west"], "runtime": {"slots": 2}},
        {"name": "west", "sites": ["west"], "runtime": {"slots": 3}},
    ]
    spec = expanded(spec_of(overrides=overrides))
    assert override_at(spec, site="north", size="s") == "small-north"
    assert override_at(spec, site="north") == "both-north"
    assert override_at(spec, site="west", size="s") == "small"
    assert override_at(spec, site="west") == "both"
    assert override_at(spec, site="east") == ""
    variants = named(spec)
    assert set(variants) == {"int4-small-north", "int4-both-north", "int4-small", "int4-both", "int4-west"}
    assert variants["int4-both-north"].runtime == variants["int4-both"].runtime
    assert {v.examples is not None for n, v in variants.items() if n.endswith("north")} == {True}
    assert all(v.examples is None for n, v in variants.items() if not n.endswith("north"))


def test_with_profiles_the_site_has_a_class_of_each() -> None:
    spec = expanded(spec_of(), profiles=[profile("pi")])
    assert set(named(spec)) == {"int4-pi-north", "int4-pi", "int4-north"}


def test_an_override_may_have_the_name_of_a_site() -> None:
    overrides = [{"name": "north", "nodeSelector": {"matchLabels": {"a": "b"}}, "engine": "auto"}]
    spec = expanded(spec_of(overrides=overrides))
    names = {
        override_at(spec, site="north"),
        override_at(spec, site="north", a="b"),
        override_at(spec, a="b"),
    }
    assert len(names) == 3


SITES = st.lists(
    st.from_regex(r"\A[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?\Z"), min_size=1, max_size=8, unique=True
)


@given(sites=SITES)
def test_any_site_gives_variants_names_of_their_own_that_stay(sites: list[str]) -> None:
    spec = expanded(spec_of(adaptation={"sites": sites}))
    names = [entry.name for entry in spec.variants]
    assert len(set(names)) == len(names) == len(sites) + 1
    assert all(re.fullmatch(NAME_PATTERN, name) and len(name) <= MAX_NAME_LENGTH for name in names)
    for site in sites:
        found = [v for v in named(spec).values() if v.examples is not None and v.examples.site == site]
        assert [v.override for v in found] == [override_at(spec, site=site)]
    again = expanded(spec_of(adaptation={"sites": sites[::-1]}))
    assert again.variants == spec.variants


def test_more_classes_than_a_revision_holds_are_refused_with_the_cure() -> None:
    sites = [f"s{index}" for index in range(16)]
    overrides = [
        {"name": f"o{i}", "nodeSelector": {"matchLabels": {f"l{i}": "x"}}, "engine": "auto"} for i in range(4)
    ]
    with pytest.raises(ExpansionError, match=rf"adaptation\.sites: 16 sites.*at most {MAX_VARIANTS}"):
        expanded(spec_of(adaptation={"sites": sites}, overrides=overrides))
    many = [
        {"name": f"o{i}", "nodeSelector": {"matchLabels": {f"l{i}": "x"}}, "engine": "auto"}
        for i in range(32)
    ]
    with pytest.raises(ExpansionError, match=r"adaptation\.sites: .*name fewer sites"):
        expanded(spec_of(adaptation={"sites": sites}, overrides=many))


@pytest.mark.parametrize(
    ("found", "changes", "keeps"),
    [
        (ONNX, {}, True),
        (files(("model.onnx", 100)), {}, True),
        (GGUF, {}, False),
        (ONNX, {"runtime": {"engine": "auto"}}, True),
        (ONNX, {"runtime": {"engine": "openvino"}}, False),
        (files(("model.onnx", 100), ("config.json", 10)), {}, False),
    ],
    ids=["onnx", "bare", "gguf", "auto", "openvino", "encoder"],
)
def test_only_servers_whose_adapters_can_be_trained_keep_examples(
    found: Resolved, changes: dict[str, Any], keeps: bool
) -> None:
    variants = named(expanded(spec_of(**changes), found))
    assert (variants["int4-north"].examples is not None) is keeps


# Adapters


def test_a_trained_adapter_is_stored_with_the_revision_and_is_the_default() -> None:
    spec = expanded(spec_of(), trained=trained())
    assert [find_problem(entry) for entry in spec.variants] == ["", ""]
    revision = revision_of(spec)
    own = revision.variant("int4-north")
    assert own is not None and own.base == ONNX.manifest
    (file,) = [f for f in own.manifest.files if f.url == STORE_URL]
    assert (file.path, file.sha256, file.size) == ("adapters/local.onnx_adapter", "a" * 64, 4096)
    env = {e["name"]: e.get("value") for e in own.serve_template["spec"]["containers"][0]["env"]}
    assert env["SLM_DEFAULT_ADAPTER"] == "local"
    other = revision.variant("int4")
    assert other is not None and other.manifest == ONNX.manifest
    assert "SLM_DEFAULT_ADAPTER" not in str(other.serve_template)


def test_an_adapter_for_other_files_is_left_out() -> None:
    assert expanded(spec_of(), trained=trained(GGUF)) == expanded(spec_of())
    assert named(expanded(spec_of(), GGUF, trained=trained(GGUF)))["int4-north"].adapters is None


def test_it_takes_the_place_of_one_of_its_name_and_of_another_default() -> None:
    rows = [
        {
            "name": name,
            "url": f"http://m/{name}.onnx_adapter",
            "sha256": "b" * 64,
            "size": 5,
            "default": name == "menu",
        }
        for name in ("local", "menu")
    ]
    overrides = [{"name": "o", "sites": ["north", "west"], "adapters": rows}]
    variants = named(expanded(spec_of(overrides=overrides), trained=trained()))
    assert [
        (a.name, a.url == STORE_URL, bool(a.default)) for a in variants["int4-o-north"].adapters or ()
    ] == [
        ("menu", False, False),
        ("local", True, True),
    ]
    assert [(a.name, bool(a.default)) for a in variants["int4-o"].adapters or ()] == [
        ("local", False),
        ("menu", True),
    ]


def test_it_needs_no_server_that_is_shown_a_credential() -> None:
    source = {"http": {"url": "http://models/v1/int4.json", "secretRef": {"name": "token"}}}
    spec = spec_of(variants=[variant("int4", "800Mi") | {"source": source}])
    assert [find_problem(entry) for entry in expanded(spec, trained=trained()).variants] == ["", ""]


def test_what_is_unset_is_no_part_of_a_revision() -> None:
    body = body_of(variant("int4", "800Mi"))
    plain = SLMDeploymentSpec.model_validate(body)
    assert "adaptation" not in plain.to_body()
    row = {"name": "menu", "url": "http://m/menu.onnx_adapter", "sha256": "b" * 64, "size": 5}
    spec = SLMDeploymentSpec.model_validate(
        body | {"overrides": [{"name": "o", "sites": ["x"], "adapters": [row]}]}
    )
    assert named(expanded(spec))["int4-o"].to_body()["adapters"] == [row]


def test_a_revision_with_overrides_and_profiles_is_the_one_of_the_release_before() -> None:
    """Golden values of the release before adaptation: whoever does not use it must not be rolled out anew."""
    adapters = [{"name": "menu", "url": "http://models/menu.onnx_adapter", "sha256": "b" * 64, "size": 5}]
    overrides = [
        {"name": "o", "sites": ["x"], "adapters": adapters},
        {"name": "p", "nodeSelector": {"matchLabels": {"a": "b"}}, "runtime": {"slots": 2}},
    ]
    body = body_of(variant("int4"), variant("int8"), overrides=overrides)
    spec = SLMDeploymentSpec.model_validate(body)
    found = {
        count: resolve(
            expanded(spec, profiles=[profile(name) for name in names]), outcomes=known(spec), stored=()
        ).revision
        for count, names in enumerate(((), ("pi", "nuc")))
    }
    assert found == {0: "d296f1fb46", 1: "7dd38bab3c"}


def test_pods_elsewhere_are_what_they_are_without_adaptation() -> None:
    def templates(spec: SLMDeploymentSpec) -> Any:
        whole = expanded(spec)
        names = {entry.name for entry in whole.variants}
        return build.build_templates(
            NAMES,
            whole,
            config=CONFIG,
            revision="r",
            digests=dict.fromkeys(names, ONNX.manifest.digest),
            references=dict.fromkeys(names, ONNX.reference),
        )

    overrides = [{"name": "o", "sites": ["west"], "runtime": {"slots": 2}}]
    plain = templates(spec_of(overrides=overrides, adaptation=None))
    adapting = templates(spec_of(overrides=overrides))
    assert set(adapting) - set(plain) == {"int4-north"}
    assert {name: adapting[name] for name in plain} == plain
    assert "xamples" not in str(plain) and "xamples" in str(adapting["int4-north"])


# Pods and Jobs


def test_pods_of_the_site_are_told_what_to_keep() -> None:
    collect = {"retention": "2h", "maxExamples": 60, "redact": ["Url", "Email"], "patterns": ["b+", "a+"]}
    spec = expanded(spec_of(adaptation={"sites": ["north"], "collect": collect}))
    revision = revision_of(spec)
    own = revision.variant("int4-north")
    assert own is not None
    for template in (own.serve_template, own.prefetch_template):
        pod = template["spec"]
        assert pod["securityContext"]["supplementalGroups"] == [65532]
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            env = {e["name"]: e.get("value") for e in container["env"]}
            assert env["SLM_EXAMPLES_DIR"] == "/examples"
            told = parse_settings(env["SLM_EXAMPLES"])
            assert (told.retention_seconds, told.max_examples) == (7200, 60)
            assert (told.redact, told.patterns) == (("Email", "Url"), ("a+", "b+"))
    (server,) = own.serve_template["spec"]["containers"]
    assert {"name": "store", "mountPath": "/examples", "subPath": "examples/shop/orders"} in server[
        "volumeMounts"
    ]


def test_what_is_kept_is_part_of_the_revision_and_how_it_is_trained_is_not() -> None:
    first = revision_of(expanded(spec_of())).revision
    kept = expanded(spec_of(adaptation={"sites": ["north"], "collect": {"retention": "1h"}}))
    assert revision_of(kept).revision != first
    training = {"sites": ["north"], "training": {"cooldown": "1h"}, "gates": {"minGain": "0.5"}}
    assert revision_of(expanded(spec_of(adaptation=training))).revision == first


def place(**changes: Any) -> TrainPlace:
    spec = expanded(spec_of(**changes), trained=trained())
    own = revision_of(spec).variant("int4-north")
    assert own is not None and spec.adaptation is not None
    return TrainPlace(
        names=NAMES,
        spec=spec,
        adaptation=spec.adaptation,
        config=CONFIG,
        site="north",
        node=NodeView(name="north0", labels={"kubernetes.io/hostname": "north-0"}, ready=True),
        variant=own,
        name="orders-train-1",
        seed=3,
    )


def test_a_job_trains_on_its_node_without_network_rights_or_credential() -> None:
    found = place(
        placement={
            "nodeSelector": {},
            "siteLabel": "site",
            "tolerations": [{"key": "edge", "operator": "Exists"}],
        }
    )
    job = build_train_job(found)
    template = job["spec"]["template"]
    pod = template["spec"]
    for tags in (job["metadata"]["labels"], template["metadata"]["labels"]):
        assert tags["slmops.dev/adaptation"] == "orders" and tags["slmops.dev/work"] == "train"
        assert tags["slmops.dev/site"] == "north" and "slmops.dev/deployment" not in tags
    assert job["spec"]["backoffLimit"] == 0 and job["spec"]["activeDeadlineSeconds"] == 3600
    assert pod["automountServiceAccountToken"] is False and pod["restartPolicy"] == "Never"
    assert [c["name"] for c in pod["initContainers"]] == ["prepare", "train", "judge"]
    assert "north-0" in json.dumps(pod["affinity"]) and pod["tolerations"][0]["key"] == "edge"
    prepare, train, judge = pod["initContainers"]
    assert judge["command"][-2:] == ["--deadline-seconds", "3600"]
    (keep,) = pod["containers"]
    mounts = {
        c["name"]: {m["mountPath"]: m for m in c["volumeMounts"]} for c in (prepare, train, judge, keep)
    }
    tree = f"trees/{found.variant.manifest.digest.removeprefix('sha256:')}"
    assert all(mounts[name]["/model"]["subPath"] == tree for name in ("prepare", "train", "judge"))
    assert [name for name, has in mounts.items() if "/examples" in has] == ["prepare"]
    assert all(
        m["readOnly"]
        for name in ("prepare", "train", "judge")
        for p, m in mounts[name].items()
        if p in ("/model", "/examples")
    )
    # What is held back is text: who trains sees token ids alone, and no disk keeps it.
    assert [name for name, has in mounts.items() if "/held-out" in has] == ["prepare", "judge"]
    held_out = next(v for v in pod["volumes"] if v["name"] == "held-out")
    assert held_out["emptyDir"]["medium"] == "Memory"
    for container in (prepare, train, judge):
        assert container["securityContext"]["runAsNonRoot"] is True
    for container in (prepare, train, judge, keep):
        confined = container["securityContext"]
        assert confined["capabilities"] == {"drop": ["ALL"]} and confined["readOnlyRootFilesystem"] is True
        assert container["terminationMessagePolicy"] == "File"
    assert prepare["command"] == [
        "python3", "-m", "slmserve.adapt", "prepare", "--model-dir", "/model", "--examples", "/examples",
        "--work", "/workspace", "--job", "/etc/slmops-job/job.json",
    ]  # fmt: skip
    assert (
        train["command"][:4] == ["python3", "-m", "slmopt", "train"]
        and train["image"] == CONFIG.optimizer_image
    )
    assert keep["command"] == [
        "python3",
        "-m",
        "slmfetch",
        "keep",
        "--file",
        "/workspace/adapter.onnx_adapter",
    ]
    served = {entry["name"]: entry["value"] for entry in judge["env"]}
    assert served["SLM_DEFAULT_ADAPTER"] == "local", "what serves is what the next one has to be better than"
    order = parse_order(template["metadata"]["annotations"]["slmops.dev/told-job.json"])
    assert (order.name, order.min_examples, order.seed, order.retention_seconds) == ("local", 100, 3, 604800)


def test_what_spec_leaves_open_is_ordered_as_the_order_leaves_it_open() -> None:
    adaptation = spec_of().adaptation
    assert adaptation is not None
    order = build_order(adaptation, seed=0)
    plain = TrainOrder(
        name=order.name, retention_seconds=order.retention_seconds, min_examples=order.min_examples
    )
    assert order == plain


def test_names_of_jobs_are_short_and_of_one_attempt() -> None:
    names = Names("shop", "a" * 40)
    found = {
        train_job_name(names, site=site, attempt=attempt, asked_at=at)
        for site in ("north", "s" * 63)
        for attempt in (1, 2)
        for at in ("2025-06-15T12:00:00Z", "2025-06-15T12:00:01Z")
    }
    assert len(found) == 8 and all(len(name) <= 57 and re.fullmatch(NAME_PATTERN, name) for name in found)


@pytest.mark.parametrize("mode", ["Managed", "None"])
def test_pods_that_train_reach_nothing_and_nobody_reaches_them(mode: Any) -> None:
    config = OperatorConfig(runtime_image="r", network=NetworkConfig(default_mode=mode))
    spec = spec_of()
    written = apply_policies(NAMES, spec, config, revisions=[], nodes=[], owned=[])
    assert {action.name for action in written} == policy_names(NAMES, spec, config)
    policy = next(action.body for action in written if action.name == "orders-train")
    assert policy["spec"] == {
        "podSelector": {
            "matchLabels": {"app.kubernetes.io/managed-by": "slmops", "slmops.dev/adaptation": "orders"}
        },
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [],
        "egress": [],
    }
    plain = spec.model_copy(update={"adaptation": None})
    assert "orders-train" not in policy_names(NAMES, plain, config)


# What is refused

ROW = {"name": "menu", "url": "http://models/menu.onnx_adapter", "sha256": "b" * 64, "size": 5}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "replicas": ({"placement": {"mode": "Replicas", "nodeSelector": {}}}, "placement.mode PerNode"),
    "base": ({"adaptation": {"sites": ["north"], "name": "base"}}, r"spec\.adaptation\.name: base"),
    "base of an override": (
        {"overrides": [{"name": "o", "sites": ["west"], "adapters": [ROW | {"name": "base"}]}]},
        r"overrides\[o\]\.adapters: with spec.adaptation none can be called base.*rename it",
    ),
    "twice": ({"adaptation": {"sites": ["north", "north"]}}, "occurs twice"),
    "not allowed": ({"privacy": {"allowedSites": ["west"]}}, "north is not among spec.privacy.allowedSites"),
    "never enough": (
        {"adaptation": {"sites": ["north"], "collect": {"maxExamples": 100}}},
        "training.minExamples: 100 is not below",
    ),
    "pattern": (
        {"adaptation": {"sites": ["north"], "collect": {"patterns": ["a", "("]}}},
        r"patterns\[1\]: it is no regular expression",
    ),
    "rate": (
        {"adaptation": {"sites": ["north"], "training": {"learningRate": "0"}}},
        "learningRate: 0 must be above 0",
    ),
    "rule": (
        {
            "adaptation": None,
            "feedback": {
                "rules": [
                    {"name": "r", "metric": {"preset": "FeedbackScore"}, "min": "1", "action": "TrainAdapter"}
                ]
            },
        },
        r"rules\[0\]\.action: TrainAdapter needs spec.adaptation",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_with_field_and_cure(case: str) -> None:
    changes, message = REFUSED[case]
    finding = find_adaptation_problem(spec_of(**changes))
    assert finding is not None and finding.reason == "InvalidSpec"
    assert re.search(message, finding.message), finding.message


def test_the_operator_runs_no_pattern_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """This one needs longer than the universe for an empty text: 2 to the power of 60 ways to fail."""

    class Compiled:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"the pattern's {name} is used")

    monkeypatch.setattr("slmops.planning.validate_adaptation.re.compile", lambda _: Compiled())
    spec = spec_of(adaptation={"sites": ["north"], "collect": {"patterns": [r"(?:a?|b?){60}\b"]}})
    assert find_adaptation_problem(spec) is None


def test_what_can_work_is_not_refused() -> None:
    assert find_adaptation_problem(spec_of(privacy={"allowedSites": ["north", "west"]})) is None
