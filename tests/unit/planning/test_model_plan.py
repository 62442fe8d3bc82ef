# SPDX-License-Identifier: Apache-2.0
"""The plan of an SLMModel: from a source to an offer, and what keeps a version or a variant from it."""

import json
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from slmops.api import SLMModelSpec
from slmops.api.spec import ModelSource
from slmops.model.jobs import ContainerView
from slmops.planning.follow import follow
from slmops.planning.slmmodel.offer import to_offer
from slmops.planning.slmmodel.versions import trimmed
from slmwire.jobs import EvaluateReport, PublishReport
from slmwire.reasons import Reason, Termination
from tests.unit.planning.model_sim import (
    GOOD,
    REPOSITORY,
    ModelSim,
    digest_of,
    source_failure,
    spec_body,
)


def by_variant(sim: ModelSim, reports: dict[str, EvaluateReport]) -> Any:
    return lambda name: reports.get(sim.labels(name)["variant"], GOOD)


def test_from_a_source_to_an_offer() -> None:
    sim = ModelSim()
    sim.settle()
    assert sim.newest.version == "a" * 10 and sim.newest.reason == "InProgress"
    assert sim.condition("SourceResolved")[:2] == ("True", "Resolved")
    made = sim.running("optimise")
    assert [sim.labels(name)["variant"] for name in made] == ["int4"]
    measured = {(sim.labels(n)["variant"], sim.labels(n)["profile"]) for n in sim.running("evaluate")}
    assert measured == {("fp16", "pi5"), ("fp16", "nuc")}, "what exists is measured meanwhile"
    sim.work_off()
    assert sim.newest.accepted and sim.newest.reason == "VersionAccepted"
    assert sim.condition("Ready")[:2] == ("True", "VersionAccepted")
    offer = to_offer("shop", "chat", sim.status)
    fp16, int4 = offer.versions[0].variants
    assert fp16.source.hf is not None and fp16.source.hf.revision == "a" * 40
    assert int4.source.oci is not None and int4.source.oci.image.startswith(f"{REPOSITORY}@sha256:")
    assert int4.profiles == ("pi5", "nuc") and int4.engine == "onnxruntime"
    assert int4.measured["pi5"].quality == 0.9 and int4.measured["pi5"].decode_tokens_per_second == 20
    expected = "VersionFound VariantAccepted VariantPublished VariantAccepted VersionAccepted"
    assert sim.transitions == expected.split()


def test_the_optimise_job_is_told_its_steps_and_place_and_holds_no_token() -> None:
    sim = ModelSim(spec=spec_body(signing={"keySecretRef": {"name": "key"}}))
    sim.spec["publish"]["oci"] |= {"pushSecretRef": {"name": "push"}, "pullSecretRef": {"name": "pull"}}
    sim.settle()
    body = sim.bodies[sim.running("optimise")[0]]
    template = body["spec"]["template"]
    told = json.loads(template["metadata"]["annotations"]["slmops.dev/told-job.json"])
    [step] = told["steps"]
    assert step["quantizeInt4"] | {"blockSize": 32, "symmetric": True} == step["quantizeInt4"]
    assert told["publish"]["oci"]["image"] == f"{REPOSITORY}:{'a' * 10}-int4" and told["sign"] is True
    pod = template["spec"]
    assert [c["name"] for c in pod["initContainers"]] == ["fetch", "step-0"]
    assert [c["name"] for c in pod["containers"]] == ["publish"]
    assert pod["initContainers"][0]["image"] == "runtime:1"
    assert pod["initContainers"][1]["image"] == "optimizer:1"
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert body["spec"]["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    for container in (*pod["initContainers"], *pod["containers"]):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted <= {volume["name"] for volume in pod["volumes"]}
        secrets = {"publish", "signing"} & mounted
        assert secrets == ({"publish", "signing"} if container["name"] == "publish" else set())
    sim.work_off()
    device = sim.bodies[next(n for n in sim.created if sim.labels(n) | {"variant": "int4"} == sim.labels(n)
                             and sim.labels(n)["work"] == "evaluate")]  # fmt: skip
    assert '"secretName": "pull"' in json.dumps(device) and '"push"' not in json.dumps(device)


def test_the_measuring_job_runs_alone_on_a_node_of_its_profile() -> None:
    sim = ModelSim()
    sim.settle()
    name = next(n for n in sim.running("evaluate") if sim.labels(n)["profile"] == "pi5")
    pod = sim.bodies[name]["spec"]["template"]["spec"]
    affinity = pod["affinity"]
    terms = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert terms == [{"matchExpressions": [{"key": "class", "operator": "In", "values": ["pi5"]}]}]
    assert "podAntiAffinity" in affinity
    assert [c["name"] for c in pod["initContainers"]] == ["fetch", "fetch-dataset"]
    command = pod["containers"][0]["command"]
    assert command[:7] == [
        "python3", "-m", "slmserve.evaluate", "--model-dir", "/model", "--dataset", "/dataset"
    ]  # fmt: skip
    # It cuts itself short before the Job's deadline of an hour ends it without a report.
    assert command[7:] == ["--deadline-seconds", "2880"]


def test_a_class_measures_with_the_engine_that_it_serves_with() -> None:
    def told(recipe: dict[str, Any], engine: str) -> tuple[str, str]:
        sim = ModelSim(spec=spec_body(recipes=[{"name": "fp16", "profiles": ["pi5"]} | recipe]))
        assert sim.profiles is not None
        view = replace(sim.profiles["pi5"], engine=engine, engine_image="class:1")
        sim.profiles = {"pi5": view}
        sim.settle()
        [container] = sim.bodies[sim.running("evaluate")[0]]["spec"]["template"]["spec"]["containers"]
        values = {entry["name"]: entry["value"] for entry in container["env"]}
        return values.get("SLM_ENGINE", ""), container["image"]

    assert told({}, "openvino") == ("openvino", "class:1")
    assert told({"engine": "llama.cpp"}, "openvino") == ("llama.cpp", "runtime:1")
    assert told({}, "auto") == ("", "runtime:1") == told({}, "")


def test_one_variant_that_loses_too_much_is_left_out() -> None:
    sim = ModelSim()
    sim.work_off(by_variant(sim, {"int4": replace(GOOD, exact_match=0.868)}))
    assert sim.newest.accepted and sim.newest.message == "left out: int4"
    int4 = sim.variant("int4")
    assert (int4.step, int4.reason) == ("Rejected", "GateFailed")
    assert int4.message == "on pi5: quality loss 0.032 is above 0.01"
    assert [v.name for v in to_offer("shop", "chat", sim.status).versions[0].variants] == ["fp16"]
    assert sim.condition("Evaluated")[:2] == ("False", "GateFailed")


def test_a_gate_stops_the_version_and_says_which() -> None:
    spec = spec_body(gates={"maxQualityLoss": "1%"})
    spec["recipes"][0]["profiles"] = ["nuc"]
    spec["recipes"][1]["profiles"] = ["pi5"]
    sim = ModelSim(spec=spec)
    sim.work_off(by_variant(sim, {"int4": replace(GOOD, exact_match=0.8712)}))
    assert not sim.newest.accepted and sim.newest.reason == "GateFailed"
    assert sim.newest.message == "int4 on pi5: quality loss 3.2 % is above 1 %"
    assert sim.condition("Ready")[:2] == ("False", "GateFailed")
    # The gate is loosened: nothing is measured again.
    before = list(sim.created)
    sim.spec["gates"]["maxQualityLoss"] = "5%"
    sim.generation += 1
    sim.settle()
    assert sim.newest.accepted and sim.created == before


def test_an_earlier_version_stays_offered_when_a_later_one_fails() -> None:
    sim = ModelSim()
    sim.work_off()
    sim.commit = "b" * 40
    sim.now += 601
    sim.work_off(lambda name: replace(GOOD, memory_bytes=2**31))
    assert [version.accepted for version in sim.status.versions] == [False, True]
    assert sim.newest.reason == "GateFailed" and "memory 2048 MiB is above 1Gi" in sim.newest.message
    assert sim.condition("Ready")[:2] == ("True", "EarlierVersion")
    assert sim.status.accepted_version == "a" * 10


def test_a_mutable_source_is_looked_at_again_in_time_only() -> None:
    sim = ModelSim()
    sim.work_off()
    sim.commit = "b" * 40
    sim.now += 300
    plan = sim.settle()
    assert len(sim.status.versions) == 1
    assert plan.requeue_after_seconds is not None and plan.requeue_after_seconds <= 300
    sim.now += 301
    sim.settle()
    assert [version.version for version in sim.status.versions] == ["b" * 10, "a" * 10]


def test_without_an_interval_a_change_of_spec_looks_again() -> None:
    spec = spec_body()
    del spec["pollInterval"]
    sim = ModelSim(spec=spec)
    sim.work_off()
    sim.commit = "b" * 40
    sim.now += 1e6
    sim.settle()
    assert len(sim.status.versions) == 1
    sim.generation += 1
    sim.settle()
    assert len(sim.status.versions) == 2


def test_old_bytes_are_never_called_by_a_new_name() -> None:
    sim = ModelSim(spec=spec_body(version="1.0"))
    sim.work_off()
    sim.spec["version"], sim.commit = "2.0", "b" * 40
    sim.generation += 1
    sim.work_off()
    assert [version.version for version in sim.status.versions] == ["2.0", "1.0"]
    assert sim.newest.accepted and sim.newest.reference == "b" * 40


def test_going_back_to_an_earlier_source_makes_and_measures_nothing() -> None:
    sim = ModelSim()
    sim.work_off()
    sim.commit = "b" * 40
    sim.now += 601
    sim.work_off()
    made = list(sim.created)
    sim.commit = "a" * 40
    sim.now += 601
    sim.settle()
    assert sim.newest.version == "a" * 10 and sim.newest.accepted and sim.created == made


def test_another_recipe_takes_over_what_was_made_before() -> None:
    sim = ModelSim()
    sim.work_off()
    made = len(sim.created)
    sim.spec["recipes"].append({"name": "int8", "steps": [{"quantizeInt8": {}}], "profiles": ["pi5"]})
    sim.generation += 1
    sim.work_off()
    assert sim.newest.version == "a" * 10 + "-2" and sim.newest.accepted
    new = [sim.labels(name)["variant"] for name in sim.created[made:]]
    assert new == ["int8", "int8"], "made and measured once"


def test_a_version_that_another_takes_the_place_of_is_given_up() -> None:
    sim = ModelSim()
    sim.settle()
    running = sim.running()
    sim.commit = "b" * 40
    sim.now += 601
    sim.settle()
    assert sim.status.versions[1].reason == "Superseded"
    assert not set(running) & set(sim.running()), "its Jobs are deleted"
    sim.work_off()
    assert sim.newest.accepted
    # It comes back, and is finished then.
    sim.commit = "a" * 40
    sim.now += 601
    sim.work_off()
    assert sim.newest.version == "a" * 10 and sim.newest.accepted


def test_what_a_source_let_down_is_tried_again_and_not_for_ever() -> None:
    sim = ModelSim(spec=spec_body(jobs={"backoffLimit": 2}))
    for attempt in range(3):
        sim.settle()
        name = sim.running("optimise")[0]
        assert name.endswith(f"-{attempt}")
        sim.fail(name, "fetch", source_failure())
        plan = sim.settle()
        if attempt < 2:
            assert sim.variant("int4").step == "Optimising"
            assert sim.condition("Optimised")[:2] == ("False", "SourceUnavailable")
            assert not sim.running("optimise"), "not before its time"
            assert plan.requeue_after_seconds is not None
            sim.now += 30 * 2**attempt
    assert sim.variant("int4").step == "Failed"
    sim.work_off()
    assert sim.newest.accepted and sim.newest.message == "left out: int4", "fp16 covers every profile"


def test_a_recipe_that_does_not_apply_is_not_tried_again() -> None:
    sim = ModelSim()
    sim.settle()
    message = Termination(reason=Reason.UNFIT.value, message="no MatMul to quantise").to_json()
    sim.fail(sim.running("optimise")[0], "step-0", message)
    sim.settle()
    assert not sim.running("optimise")
    assert sim.condition("Optimised")[1] == "Unfit"
    assert "step-0: no MatMul to quantise" in sim.condition("Optimised")[2]
    # By hand it is.
    sim.annotations["slmops.dev/retry"] = "1"
    sim.settle()
    assert sim.running("optimise") and sim.variant("int4").step == "Optimising"
    sim.work_off()
    assert sim.newest.message == ""


def test_an_image_that_cannot_be_pulled_is_said_with_the_last_words() -> None:
    sim = ModelSim()
    sim.settle()
    name = sim.running("optimise")[0]

    def stuck(containers: tuple[ContainerView, ...]) -> tuple[ContainerView, ...]:
        said = ContainerView(name="fetch", reason="ImagePullBackOff", message="no such image runtime:1")
        return (said, *containers[1:])

    sim.progress(name, stuck)
    plan = sim.settle()
    assert sim.condition("Optimised")[:2] == ("False", "ImagePullBackOff")
    assert "no such image runtime:1" in sim.condition("Optimised")[2]
    assert plan.requeue_after_seconds is not None and plan.requeue_after_seconds <= 600
    sim.now += 601
    sim.settle()
    assert name not in sim.jobs and sim.variant("int4").failures == 1, "given up, to be tried again"


def test_an_image_has_its_time_from_when_it_is_wanted() -> None:
    sim = ModelSim()
    sim.settle()
    name = sim.running("optimise")[0]
    sim.now += 4000

    def stuck(containers: tuple[ContainerView, ...]) -> tuple[ContainerView, ...]:
        done = replace(containers[0], state="Done", finished_at=sim.now)
        return (
            done,
            replace(containers[1], reason="ErrImagePull", message="connection reset"),
            containers[2],
        )

    sim.progress(name, stuck)
    sim.settle()
    assert name in sim.running("optimise"), "the fetcher took an hour, the image has just been asked for"
    assert sim.condition("Optimised")[1] == "ImagePullBackOff"
    sim.now += 601
    sim.settle()
    assert sim.variant("int4").failures == 1


def test_a_pod_on_a_node_that_is_gone_is_given_up() -> None:
    sim = ModelSim()
    sim.settle()
    name = sim.running("optimise")[0]
    sim.pods[name] = replace(sim.pods[name], node="pi-7", deleting=True)
    sim.settle()
    assert sim.condition("Optimised")[1] == "PodLost" and "node pi-7" in sim.condition("Optimised")[2]
    assert name not in sim.jobs, "its Job would be active for as long as the node does not answer"
    sim.now += 31
    sim.settle()
    assert len(sim.running("optimise")) == 1


def test_a_pod_in_which_nothing_begins_says_where_to_look() -> None:
    sim = ModelSim()
    sim.settle()
    name = sim.running("optimise")[0]
    waiting = tuple(replace(c, reason="ContainerCreating") for c in sim.pods[name].containers)
    sim.pods[name] = replace(sim.pods[name], node="pi-7", started_at=sim.now, containers=waiting)
    plan = sim.settle()
    assert sim.condition("Optimised")[0] == "Unknown"
    assert plan.requeue_after_seconds is not None and plan.requeue_after_seconds <= 600
    sim.now += 600
    sim.settle()
    assert sim.condition("Optimised")[:2] == ("False", "NotStarted")
    assert f"kubectl describe pod {name}" in sim.condition("Optimised")[2] and name in sim.running()
    sim.progress(name, lambda cs: (replace(cs[0], state="Running", reason=""), *cs[1:]))
    sim.settle()
    assert sim.condition("Optimised")[1] == "Optimising"


def test_jobs_that_the_api_server_refuses_are_said() -> None:
    sim = ModelSim(refuses="exceeded quota: jobs")
    sim.settle()
    assert sim.condition("Optimised")[:2] == ("False", "WriteFailed")
    assert "exceeded quota: jobs" in sim.condition("Optimised")[2]
    assert sim.condition("Evaluated")[:2] == ("False", "WriteFailed")
    sim.refuses = ""
    sim.settle()
    assert sim.condition("Optimised")[:2] == ("Unknown", "Optimising")
    sim.work_off()
    assert sim.newest.accepted and not sim.variant("int4").reason


def test_a_job_that_gets_no_pod_says_where_to_look() -> None:
    sim = ModelSim()
    sim.settle()
    name = sim.running("optimise")[0]
    pod = sim.pods.pop(name)
    plan = sim.settle()
    assert sim.condition("Optimised")[0] == "Unknown"
    assert plan.requeue_after_seconds is not None and plan.requeue_after_seconds <= 60
    sim.now += 60
    sim.settle()
    assert sim.condition("Optimised")[:2] == ("False", "NotStarted")
    assert f"kubectl describe job {name}" in sim.condition("Optimised")[2]
    sim.pods[name] = pod
    sim.settle()
    assert sim.condition("Optimised")[1] == "Optimising"


def test_a_dataset_without_golden_set_is_refused_by_name() -> None:
    sim = ModelSim(dataset=("text.txt",))
    sim.settle()
    status, reason, message = sim.condition("SourceResolved")
    assert (status, reason) == ("False", "DatasetUnfit") and "golden.jsonl" in message
    assert not sim.running("evaluate")
    sim.dataset = ("golden.jsonl",)
    sim.annotations["slmops.dev/retry"] = "put there"
    sim.work_off()
    assert sim.newest.accepted


def test_a_profile_that_does_not_exist_is_waited_for() -> None:
    sim = ModelSim()
    profiles, sim.profiles = sim.profiles, {}
    sim.settle()
    assert not sim.running("evaluate")
    assert sim.condition("Evaluated")[1] == "ProfileNotFound"
    sim.profiles = profiles
    sim.work_off()
    assert sim.newest.accepted


def test_profiles_that_cannot_be_read_are_not_missing() -> None:
    sim = ModelSim()
    profiles, sim.profiles = sim.profiles, None
    sim.settle()
    assert sim.condition("Evaluated")[1] == "ProfilesUnknown" and not sim.running("evaluate")
    sim.profiles = profiles
    sim.settle()
    assert len(sim.running("evaluate")) == 2
    sim.settle()
    assert sim.condition("Evaluated")[1] == "Evaluating"


@pytest.mark.parametrize("said", ["", "0.9", '{"score": 7}', '{"score": true}', '{"score": "0.9"}', "[1]"])
def test_a_scorer_that_prints_no_score(said: str) -> None:
    evaluation = {"metric": "Score", "scorer": {"image": "scorer:1", "args": ["--strict"]}}
    sim = ModelSim(spec=spec_body(evaluation=evaluation))
    sim.settle()
    name = sim.running("evaluate")[0]
    pod = sim.bodies[name]["spec"]["template"]["spec"]
    assert [c["name"] for c in pod["initContainers"]] == ["fetch", "evaluate"]
    assert [c["name"] for c in pod["containers"]] == ["score"]
    sim.finish(name, score=said)
    sim.settle()
    entry = next(e for v in sim.newest.variants for e in v.evaluations if e.reason == "NoScore")
    assert entry.verdict == "Error" and '{"score": 0.93}' in entry.message


def test_a_scorers_score_is_the_quality() -> None:
    evaluation = {"metric": "Score", "scorer": {"image": "scorer:1"}}
    sim = ModelSim(spec=spec_body(evaluation=evaluation, gates={"minQuality": "0.9"}))
    for _ in range(20):
        sim.settle()
        for name in sim.running():
            if sim.jobs[name].work == "evaluate":
                good = sim.labels(name)["variant"] == "fp16"
                sim.finish(name, score='{"score": 0.95}' if good else '{"score": 0.2}')
            else:
                sim.finish(name)
    assert sim.newest.accepted
    assert sim.variant("int4").message == "on pi5: Score 0.2 is below 0.9"


@pytest.mark.parametrize(
    "reference",
    [
        f"oci://evil.example/models/chat@{digest_of('x')}",
        f"oci://{REPOSITORY}:latest",
        f"s3://bucket/{REPOSITORY}",
        "",
    ],
)
def test_a_report_from_a_node_may_not_point_elsewhere(reference: str) -> None:
    sim = ModelSim()
    sim.settle()
    name = sim.running("optimise")[0]
    sim.finish(name, PublishReport(digest=digest_of("x"), reference=reference, size_bytes=1, files=1))
    sim.settle()
    assert sim.variant("int4").source is None and sim.variant("int4").reason == "NotPublished"


def test_perplexity_is_better_when_it_is_less() -> None:
    evaluation = {"metric": "Perplexity", "reference": "fp16"}
    sim = ModelSim(spec=spec_body(evaluation=evaluation, gates={"maxQualityLoss": "5%"}))
    sim.work_off(by_variant(sim, {"int4": replace(GOOD, perplexity=4.3)}))
    assert sim.variant("int4").message == "on pi5: quality loss 7.5 % is above 5 %"
    assert to_offer("shop", "chat", sim.status).versions[0].variants[0].measured["pi5"].quality == 0.25


def test_manual_waits_for_a_person() -> None:
    sim = ModelSim(spec=spec_body(policy="Manual"))
    sim.work_off()
    assert (sim.newest.accepted, sim.newest.reason) == (False, "AwaitingAcceptance")
    sim.annotations["slmops.dev/accept"] = "another"
    sim.settle()
    assert not sim.newest.accepted
    sim.annotations["slmops.dev/accept"] = sim.newest.version
    sim.settle()
    assert sim.newest.accepted


def test_paused_begins_nothing_and_finishes_what_runs() -> None:
    sim = ModelSim()
    sim.settle()
    made = len(sim.created)
    sim.spec["paused"] = True
    sim.work_off()
    assert len(sim.created) == made and sim.newest.reason == "Paused"
    sim.spec["paused"] = False
    sim.work_off()
    assert sim.newest.accepted


def test_jobs_are_kept_for_their_logs_and_deleted_then() -> None:
    sim = ModelSim()
    sim.work_off()
    assert sim.jobs and not sim.running()
    sim.now += 3601
    sim.settle()
    assert not sim.jobs


def test_parallelism_bounds_the_jobs_that_make() -> None:
    recipes = [
        {"name": f"q{size}", "steps": [{"quantizeInt4": {"blockSize": size}}]} for size in (16, 32, 64, 128)
    ]
    sim = ModelSim(spec=spec_body(recipes=recipes, jobs={"parallelism": 2}))
    sim.settle()
    assert len(sim.running("optimise")) == 2
    sim.finish(sim.running("optimise")[0])
    sim.settle()
    assert len(sim.running("optimise")) == 2 and len(sim.running("evaluate")) == 1
    sim.work_off()
    assert sim.newest.accepted


def test_nothing_is_measured_without_evaluation() -> None:
    spec = spec_body(gates={"maxSize": "500"})
    del spec["evaluation"]
    sim = ModelSim(spec=spec)
    sim.work_off()
    assert sim.newest.reason == "GateFailed" and "size" in sim.newest.message
    sim.spec["gates"] = {}
    sim.settle()
    assert sim.newest.accepted
    assert to_offer("shop", "chat", sim.status).versions[0].variants[1].profiles == ("pi5", "nuc")


def test_history_is_bounded_and_keeps_what_is_offered() -> None:
    sim = ModelSim(spec=spec_body(versionHistoryLimit=2))
    sim.work_off()
    for letter in "bcde":
        sim.commit = letter * 40
        sim.now += 601
        sim.work_off(lambda name: replace(GOOD, memory_bytes=2**31))
    assert [version.version[0] for version in sim.status.versions] == ["e", "d", "a"]
    assert sim.condition("Ready")[:2] == ("True", "EarlierVersion")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"recipes": [{"name": "x", "steps": [{"distil": {}}]}]}, "spec.recipes[0] (x).steps[0]"),
        ({"publish": None}, "spec.publish"),
        ({"evaluation": {"reference": "int2"}}, "spec.evaluation.reference"),
        ({"evaluation": None}, "spec.gates.max"),
        ({"pollInterval": "1s"}, "spec.pollInterval"),
        ({"recipes": [{"name": "x", "steps": [{"prune": {"method": "NM"}}]}]}, "pattern"),
        ({"recipes": [{"name": "x", "steps": [{"slice": {}}]}]}, "feedForwardPercent"),
        ({"evaluation": {"metric": "Score"}}, "scorer"),
        ({"evaluation": {"metric": "Perplexity"}, "gates": {"minQuality": "0.5"}}, "spec.gates.minQuality"),
        ({"source": {"file": {"path": "/x", "files": [{"path": "a", "sha256": "0" * 64, "size": 1}]}}},
         "spec.source.file.path"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_field(changes: dict[str, Any], field: str) -> None:
    sim = ModelSim(spec={k: v for k, v in spec_body(**changes).items() if v is not None})
    sim.settle()
    status, _, message = sim.condition("Accepted")
    assert status == "False" and field in message
    assert not sim.jobs and not sim.status.versions


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "1.0-"},
        {"version": "1."},
        {"recipes": [{"name": "x", "engine": "tensorrt"}]},
        {"recipes": [{"name": "x", "profiles": ["pi5.shop"]}]},
    ],
)
def test_what_no_job_or_deployment_could_be_named_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes))):
        SLMModelSpec.model_validate(spec_body(**changes))


@pytest.mark.parametrize("deadline", ["999999999999999999999999999999h", "721h", "0s"])
def test_a_deadline_that_no_job_can_have_is_refused(deadline: str) -> None:
    for changes in ({"jobs": {"deadline": deadline}}, {"evaluation": {"deadline": deadline}}):
        sim = ModelSim(spec=spec_body(**changes))
        sim.settle()
        assert sim.condition("Accepted")[1] == "InvalidSpec"
        assert f"spec.{next(iter(changes))}.deadline" in sim.condition("Accepted")[2]


def test_a_bad_edit_takes_nothing_away() -> None:
    sim = ModelSim()
    sim.work_off()
    sim.spec["publish"] = None
    sim.settle()
    assert sim.condition("Accepted")[0] == "False" and sim.condition("Ready")[0] == "True"
    assert to_offer("shop", "chat", sim.status).versions[0].accepted


def test_published_to_a_claim_or_a_store() -> None:
    listed = ({"path": "model.onnx", "sha256": "1" * 64, "size": 7},)
    for publish, entries, kind in (
        ({"pvc": {"claimName": "models", "path": "chat"}}, listed, "pvc"),
        ({"s3": {"bucket": "models", "prefix": "chat/"}}, (), "s3"),
        ({"s3": {"bucket": "models", "prefix": "chat/"}}, listed, "s3"),
    ):
        sim = ModelSim(spec=spec_body(publish=publish))
        sim.settle()
        name = sim.running("optimise")[0]
        report = PublishReport(digest=digest_of("x"), reference="", size_bytes=7, files=1, entries=entries)
        sim.finish(name, report)
        sim.settle()
        source = getattr(sim.variant("int4").source, kind)
        assert [file.path for file in source.files] == ["model.onnx"], "pinned by hash"
        assert "int4" in (source.path if kind == "pvc" else source.prefix)


def test_another_source_that_is_not_known_stops_the_work_on_the_old_one() -> None:
    sim = ModelSim()
    sim.settle()
    sim.failing["http"] = Reason.ACCESS_DENIED
    sim.spec["source"] = {"http": {"url": "https://models.example/m.json"}}
    sim.generation += 1
    sim.settle()
    assert sim.condition("SourceResolved")[:2] == ("False", "AccessDenied")
    assert not sim.running() and not sim.newest.accepted
    sim.failing.clear()
    sim.now += 10
    sim.spec["evaluation"] = {}
    sim.work_off()
    assert sim.newest.accepted and sim.variant("fp16").source.http is not None


def test_a_recipe_changed_while_paused_waits_for_its_version() -> None:
    sim = ModelSim()
    sim.settle()
    sim.spec["paused"] = True
    sim.spec["recipes"] = [{"name": "other", "profiles": ["pi5"]}]
    sim.generation += 1
    sim.settle()
    assert [variant.name for variant in sim.newest.variants] == ["fp16", "int4"]
    sim.spec["paused"] = False
    sim.work_off()
    assert sim.newest.accepted and [variant.name for variant in sim.newest.variants] == ["other"]


def test_versions_in_use_stay_and_no_number_is_given_twice() -> None:
    sim = ModelSim(spec=spec_body(version="1.0", versionHistoryLimit=1))
    names = []
    for letter in "abcd":
        sim.commit = letter * 40
        sim.now += 601
        sim.work_off()
        names.append(sim.newest.version)
        sim.in_use = frozenset(names[:1])
    assert names == ["1.0", "1.0-2", "1.0-3", "1.0-4"]
    assert [version.version for version in sim.status.versions] == ["1.0-4", "1.0"]
    offered = to_offer("shop", "chat", sim.status)
    followed = follow(ModelSource(name="chat"), offered, present="1.0-3")
    assert followed.version is not None and followed.version.version == "1.0-4", "1.0-3 was dropped meanwhile"


def test_many_measurements_do_not_fill_the_object() -> None:
    sim = ModelSim(spec=spec_body(recipes=[{"name": "fp16"}]))
    sim.work_off()
    [variant] = sim.newest.variants
    said = variant.evaluations[0].model_copy(update={"reason": "GateFailed", "message": "x" * 512})
    full = variant.model_copy(
        update={"evaluations": [said.model_copy(update={"profile": f"p{i}"}) for i in range(16)]}
    )
    variants = [full.model_copy(update={"name": f"r{i}"}) for i in range(16)]
    versions = [
        sim.newest.model_copy(update={"version": f"v{i}", "variants": variants, "accepted": i == 18})
        for i in range(20)
    ]
    kept = trimmed(versions, limit=20, in_use=frozenset({"v19"}))
    assert [version.version for version in kept] == ["v0", "v18"]
    assert len(json.dumps([version.to_body() for version in kept])) < 750_000, "twice that is the limit"


def test_many_files_do_not_fill_the_object() -> None:
    files = [{"path": f"f{i}", "sha256": "1" * 64, "size": 1} for i in range(100)]
    recipes = [{"name": f"r{i}"} for i in range(16)]
    spec = {"source": {"pvc": {"claimName": "c", "files": files}}, "recipes": recipes}
    sim = ModelSim(spec=spec | {"versionHistoryLimit": 20})
    for number in range(4):
        sim.spec["version"] = f"v{number}"
        sim.generation += 1
        sim.work_off()
    assert sim.newest.accepted and len(sim.status.versions) == 2
    assert len(json.dumps(sim.status.to_body())) < 500_000


def test_a_deployment_that_asks_for_another_look_gets_one() -> None:
    sim = ModelSim()
    del sim.spec["pollInterval"]
    sim.settle()
    sim.work_off()
    sim.commit = "b" * 40
    sim.now += 3600
    sim.settle()
    assert sim.newest.version == "a" * 10, "nobody has asked"
    sim.look_asked_at = sim.now
    sim.settle()
    assert sim.newest.version == "b" * 10
    looks = sim.status.source.checks if sim.status.source else 0
    sim.now += 3600
    sim.settle()
    assert sim.status.source is not None and sim.status.source.checks == looks, "it was asked once"


def test_a_look_that_was_just_made_answers_whoever_asks() -> None:
    sim = ModelSim()
    del sim.spec["pollInterval"]
    sim.settle()
    sim.commit = "b" * 40
    sim.look_asked_at = sim.now + 30
    sim.now += 40
    sim.settle()
    assert sim.newest.version == "a" * 10
