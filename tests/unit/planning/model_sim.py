# SPDX-License-Identifier: Apache-2.0
"""An SLMModel in memory: Jobs that end as they are told, sources that answer, an operator that forgets."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from slmops.api import SLMModelSpec, SLMModelStatus
from slmops.api.base import LabelSelector
from slmops.api.slmmodel_status import ModelVariantStatus, ModelVersionStatus
from slmops.api.source import Source
from slmops.model.config import OperatorConfig
from slmops.model.jobs import ContainerView, CreateJob, JobPodView, JobView
from slmops.model.observed import Resolved, ResolveFailure
from slmops.model.slmmodel import ModelObject, ModelObserved, ModelPlan, ProfileView
from slmops.planning.slmmodel.plan import plan_model
from slmwire.jobs import EvaluateReport, PublishReport, to_message
from slmwire.manifest import Manifest, ManifestFile
from slmwire.reasons import Reason, Termination

START: Final = 1_700_000_000.0
REPOSITORY: Final = "registry.example/models/chat"
Body = dict[str, Any]


def spec_body(**changes: Any) -> Body:
    """A source as it is and an int4 variant, both measured on two device classes."""
    return {
        "source": {"hf": {"repo": "owner/model"}},
        "pollInterval": "10m",
        "recipes": [
            {"name": "fp16", "profiles": ["pi5", "nuc"]},
            {"name": "int4", "steps": [{"quantizeInt4": {}}], "profiles": ["pi5", "nuc"]},
        ],
        "publish": {"oci": {"image": REPOSITORY}},
        "evaluation": {"dataset": {"http": {"url": "https://data.example/set/m.json"}}},
        "gates": {"maxQualityLoss": "0.01", "maxMemory": "1Gi"},
    } | changes


def digest_of(text: str) -> str:
    """A digest that follows from a text."""
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def resolved_of(text: str, reference: str, *names: str) -> Resolved:
    """Files whose bytes follow from a text."""
    files = tuple(
        ManifestFile(
            path=name,
            size=1000,
            sha256=hashlib.sha256(f"{text}/{name}".encode()).hexdigest(),
            url=f"https://files.example/{name}",
        )
        for name in sorted(names or ("model.onnx",))
    )
    return Resolved(manifest=Manifest(files=files), reference=reference)


GOOD: Final = EvaluateReport(
    engine="onnxruntime",
    samples=20,
    exact_match=0.9,
    perplexity=4.0,
    prompt_tokens_per_second=200.0,
    decode_tokens_per_second=20.0,
    first_token_seconds=0.2,
    memory_bytes=500_000_000,
    cache_bytes_per_token=1024,
)


@dataclass
class ModelSim:
    """`commits` is what the source's branch points to; Jobs run until `finish` or `fail`."""

    spec: Body = field(default_factory=spec_body)
    now: float = START
    commit: str = "a" * 40
    dataset: tuple[str, ...] = ("golden.jsonl",)
    status: SLMModelStatus = field(default_factory=SLMModelStatus)
    generation: int = 1
    annotations: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, JobView] = field(default_factory=dict)
    pods: dict[str, JobPodView] = field(default_factory=dict)
    bodies: dict[str, Body] = field(default_factory=dict)
    created: list[str] = field(default_factory=list)
    """Names of all Jobs that were ever made, in order."""
    resolutions: dict[str, Resolved | ResolveFailure] = field(default_factory=dict)
    manifests: dict[str, Resolved] = field(default_factory=dict)
    profiles: Mapping[str, ProfileView] | None = field(
        default_factory=lambda: {
            name: ProfileView(node_selector=LabelSelector(match_labels={"class": name}))
            for name in ("pi5", "nuc")
        }
    )
    failing: dict[str, Reason] = field(default_factory=dict)
    """By kind of source."""
    config: OperatorConfig = field(
        default_factory=lambda: OperatorConfig(runtime_image="runtime:1", optimizer_image="optimizer:1")
    )
    transitions: list[str] = field(default_factory=list)
    in_use: frozenset[str] = frozenset()
    look_asked_at: float = 0.0
    refuses: str = ""
    """What the API server says about every Job; empty: it takes them."""
    refused: dict[str, str] = field(default_factory=dict)

    def observed(self) -> ModelObserved:
        """The snapshot."""
        model = ModelObject(
            name="chat",
            namespace="shop",
            uid="uid",
            generation=self.generation,
            spec=SLMModelSpec.model_validate(self.spec),
            status=SLMModelStatus.model_validate(json.loads(json.dumps(self.status.to_body()))),
            annotations=dict(self.annotations),
        )
        return ModelObserved(
            model=model,
            config=self.config,
            jobs=tuple(self.jobs[name] for name in sorted(self.jobs)),
            pods=tuple(self.pods[name] for name in sorted(self.pods)),
            resolutions=dict(self.resolutions),
            manifests=dict(self.manifests),
            profiles=self.profiles,
            in_use=self.in_use,
            look_asked_at=self.look_asked_at,
            refused=dict(self.refused),
        )

    def look(self, *, writes: int | None = None) -> ModelPlan:
        """Plan and carry out; with `writes`, the operator dies after so many writes."""
        plan = plan_model(self.observed(), self.now)
        left = writes if writes is not None else 10_000
        if plan.status != self.status:
            if left == 0:
                self.forget()
                return plan
            left -= 1
            self.status = plan.status
            self.transitions += [transition.reason for transition in plan.transitions]
        self.refused = {}
        for action in plan.actions:
            if self.refuses and isinstance(action, CreateJob):
                self.refused[action.name] = self.refuses
                continue
            if left == 0:
                self.forget()
                return plan
            left -= 1
            if isinstance(action, CreateJob):
                self._create(action)
            else:
                self.jobs.pop(action.name, None)
                self.pods.pop(action.name, None)
        found = [r for r in self.resolutions.values() if isinstance(r, Resolved)]
        known = self.manifests | {r.manifest.digest: r for r in found}
        kept = plan.digests | {r.manifest.digest for r in found}
        self.manifests = {digest: r for digest, r in known.items() if digest in kept}
        self.resolutions = {q: r for q, r in self.resolutions.items() if q in plan.questions}
        for request in plan.resolve:
            self.resolutions[request.source_hash] = self._resolve(request.source)
        return plan

    def settle(self, *, limit: int = 30) -> ModelPlan:
        """Look until nothing changes any more at this moment."""
        for _ in range(limit):
            before = (self.status, dict(self.jobs), dict(self.resolutions))
            plan = self.look()
            if (self.status, dict(self.jobs), dict(self.resolutions)) == before:
                return plan
        raise AssertionError(f"the plan does not come to rest: {self.status}")

    def forget(self) -> None:
        """The operator is restarted."""
        self.resolutions.clear()
        self.manifests.clear()

    def _create(self, action: CreateJob) -> None:
        assert action.name not in self.jobs, "a Job of that name exists"
        assert len(action.name) <= 63
        self.created.append(action.name)
        self.bodies[action.name] = dict(action.body)
        self.jobs[action.name] = JobView(name=action.name, work=action.work, created_at=self.now)
        spec = action.body["spec"]["template"]["spec"]
        names = [c["name"] for c in (*spec["initContainers"], *spec["containers"])]
        self.pods[action.name] = JobPodView(
            name=action.name,
            job=action.name,
            created_at=self.now,
            containers=tuple(ContainerView(name=name) for name in names),
        )

    def _resolve(self, source: Source) -> Resolved | ResolveFailure:
        kind = next(iter(source.to_body()))
        if kind in self.failing:
            return ResolveFailure(reason=self.failing[kind], message="scripted", retry_at=self.now + 5)
        if source.hf is not None:
            commit = source.hf.revision if len(source.hf.revision) == 40 else self.commit
            return resolved_of(commit, commit)
        if source.oci is not None:
            return resolved_of(source.oci.image, source.oci.image)
        if source.http is not None:
            return resolved_of("dataset", digest_of("dataset manifest"), *self.dataset)
        if source.s3 is not None:
            return resolved_of(f"{source.s3.bucket}/{source.s3.prefix}", "listed")
        return resolved_of(json.dumps(source.to_body()), "files")

    # Jobs

    def running(self, work: str = "") -> list[str]:
        """Names of Jobs that run."""
        return sorted(
            name for name, job in self.jobs.items() if job.state == "Active" and work in ("", job.work)
        )

    def labels(self, name: str) -> Body:
        """Labels of a Job."""
        labels: Body = self.bodies[name]["metadata"]["labels"]
        return {key.partition("/")[2]: value for key, value in labels.items()}

    def publish_report(self, name: str) -> PublishReport:
        """What the publisher of an honest Job reports."""
        told = self.bodies[name]["spec"]["template"]["metadata"]["annotations"]["slmops.dev/told-job.json"]
        image = json.loads(told)["publish"]["oci"]["image"]
        digest = digest_of(image)
        repository = image.rpartition(":")[0]
        return PublishReport(digest=digest, reference=f"oci://{repository}@{digest}", size_bytes=9, files=1)

    def finish(
        self, name: str, report: PublishReport | EvaluateReport | None = None, **messages: str
    ) -> None:
        """The Job ends well; the container that reports says what it is told to."""
        job = self.jobs[name]
        if report is None:
            report = self.publish_report(name) if job.work == "optimise" else GOOD
        said = {"publish" if job.work == "optimise" else "evaluate": to_message(report)} | messages
        containers = tuple(
            ContainerView(name=c.name, state="Done", message=said.get(c.name, ""))
            for c in self.pods[name].containers
        )
        self._end(name, containers, state="Complete", reason="")

    def fail(self, name: str, container: str, message: str, *, reason: str = "Error") -> None:
        """One container ends with an error."""
        failed = False
        containers = []
        for c in self.pods[name].containers:
            failed = failed or c.name == container
            if c.name == container:
                containers.append(ContainerView(name=c.name, state="Failed", reason=reason, message=message))
            else:
                containers.append(ContainerView(name=c.name, state="Waiting" if failed else "Done"))
        assert failed, f"no container {container}"
        self._end(name, tuple(containers), state="Failed", reason="BackoffLimitExceeded")

    def lose(self, name: str) -> None:
        """Its pod is gone, and the Job failed with it."""
        del self.pods[name]
        self.jobs[name] = JobView(
            name=name, work=self.jobs[name].work, state="Failed", created_at=self.now, finished_at=self.now
        )

    def progress(
        self, name: str, change: Callable[[tuple[ContainerView, ...]], tuple[ContainerView, ...]]
    ) -> None:
        """Change the containers of a Job that runs."""
        old = self.pods[name]
        self.pods[name] = replace(old, containers=change(old.containers))

    def _end(self, name: str, containers: tuple[ContainerView, ...], *, state: Any, reason: str) -> None:
        old = self.pods[name]
        self.pods[name] = JobPodView(name=name, job=name, created_at=old.created_at, containers=containers)
        job = self.jobs[name]
        self.jobs[name] = JobView(
            name=name,
            work=job.work,
            state=state,
            reason=reason,
            created_at=job.created_at,
            finished_at=self.now,
        )

    # Status

    @property
    def newest(self) -> ModelVersionStatus:
        """The newest version."""
        return self.status.versions[0]

    def variant(self, name: str) -> ModelVariantStatus:
        """A variant of the newest version."""
        return next(variant for variant in self.newest.variants if variant.name == name)

    def condition(self, kind: str) -> tuple[str, str, str]:
        """Status, reason and message."""
        return next((c.status, c.reason, c.message) for c in self.status.conditions if c.type == kind)

    def work_off(
        self, report: Callable[[str], EvaluateReport] = lambda name: GOOD, *, rounds: int = 40
    ) -> None:
        """Let every Job end well until there is none any more."""
        for _ in range(rounds):
            self.settle()
            names = self.running()
            if not names:
                return
            for name in names:
                self.finish(name, report(name) if self.jobs[name].work == "evaluate" else None)
        raise AssertionError("there is always another Job")


def source_failure(reason: Reason = Reason.SOURCE_UNAVAILABLE) -> str:
    """Termination message of a fetcher that a source let down."""
    return Termination(reason=reason.value, message="the source does not answer").to_json()
