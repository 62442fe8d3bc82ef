# SPDX-License-Identifier: Apache-2.0
"""What the Jobs of an SLMModel are told and what they report.

An *optimise* Job is one pod: `slmfetch` brings the source into a volume, each recipe step is an init
container of its own (so that the pod's status tells how far it is and which step failed), and the last
container publishes. An *evaluate* Job is one pod on a node of the device class: `slmfetch`, then
`slmserve` measures.

A *train* Job of an SLMDeployment is one pod on a node whose server kept examples: `prepare` (slmserve)
turns them into token ids and holds some back, `train` (slmopt) sees token ids alone, `judge` (slmserve)
compares the model with and without the adapter, and `keep` (slmfetch) puts the file into the node's store.
It needs no network. Pods hold no Kubernetes credential: a report is the container's termination message.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Final, cast

JOB_FILE: Final = "/etc/slmops-job/job.json"
"""The Job's instructions, from an annotation of the pod: `{"steps": [...], "publish": {...}, "sign": bool}`,
named as in the SLMModel. `publish` names this variant's own place: an image with its tag, or a folder."""
WORK_DIR: Final = "/workspace"
"""Volume that the containers of an optimise Job share."""
SOURCE_TREE_ENV: Final = "SLM_SOURCE_TREE"
"""Folder with the source's files, read-only."""
STEP_DIR: Final = "/workspace/step-{index}"
"""Output of step `index`, which is the input of the next."""
PUBLISH_SECRET_DIR: Final = "/etc/slmops-publish"
"""Credentials for publishing, files as in `paths.SOURCE_DIR`."""
PUBLISH_VOLUME_DIR: Final = "/mnt/slmops-publish"
"""Root of the claim's volume when a Job publishes to a pvc; `publish.pvc.path` is relative to it."""
SIGNING_KEY_FILE: Final = "/etc/slmops-signing/key.pem"
"""Private key (PEM) that signs what is published; absent means unsigned."""
DATASET_DIR: Final = "/dataset"
"""Where an evaluate Job finds its dataset: `golden.jsonl` and, optional, `text.txt`."""
ANSWERS_FILE: Final = "/workspace/answers.jsonl"
"""Where `slmserve evaluate` leaves the answers for a custom scorer."""
TRAIN_TOKENS_FILE: Final = "/workspace/tokens.jsonl"
"""What a training learns from, `{"prompt": [ids], "answer": [ids]}` a line, end token included."""
HELD_OUT_DIR: Final = "/held-out"
"""Where a training has what it is judged by, a golden.jsonl: a volume that `train` does not see, as it is the
one thing in plain text that leaves the folder of examples. It is in memory, so no disk keeps it."""
ADAPTER_FILE: Final = "/workspace/adapter.onnx_adapter"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReport:
    """Termination message of the container that publishes."""

    digest: str
    """Manifest digest, `sha256:<hex>`."""
    reference: str
    """Where it is: `oci://HOST/REPO@sha256:...`, `s3://BUCKET/PREFIX`, or `pvc://CLAIM/PATH`."""
    size_bytes: int
    files: int
    signed: bool = False
    entries: Sequence[Mapping[str, Any]] = ()
    """`path`, `sha256` and `size` of each file, as far as they fit into the message. A place that the
    operator cannot read (pvc) needs them; in an S3 store they pin each object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateReport:
    """Termination message of the container that measures; quantities that were not measured are None."""

    engine: str
    samples: int
    exact_match: float | None = None
    """Share of the golden set answered as expected, 0..1."""
    perplexity: float | None = None
    """Of the expected answers given their prompts."""
    score: float | None = None
    """Of a custom scorer, 0..1, higher is better."""
    prompt_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None
    """One stream."""
    first_token_seconds: float | None = None
    memory_bytes: int | None = None
    """Peak resident set with one request at a time, weights and cache included."""
    cache_bytes_per_token: int | None = None
    size_bytes: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOrder:
    """What the containers of a training are told, as `{"adapter": {...}}` in the job file."""

    name: str
    """Of the adapter."""
    retention_seconds: int
    """Older examples are not taken."""
    min_examples: int
    """Least number to train on; those held back come on top."""
    held_out_share: float = 0.2
    max_epochs: int = 20
    learning_rate: float = 0.003
    min_gain: float = 0.05
    max_quality_loss: float = 0.02
    seed: int = 0

    def to_json(self) -> str:
        """The job file."""
        return json.dumps({"adapter": asdict(self)}, separators=(",", ":"), sort_keys=True)


def parse_order(text: str | bytes) -> TrainOrder:
    """Inverse of `TrainOrder.to_json`; raises ValueError for anything else."""
    try:
        return TrainOrder(**json.loads(text)["adapter"])
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"this is no order to train an adapter: {error}") from error


class TrainOutcome(StrEnum):
    """What became of a training; all but the first are no adapter."""

    ACCEPTED = "Accepted"
    TOO_FEW_EXAMPLES = "TooFewExamples"
    NO_GAIN = "NoGain"
    """On held-out examples the model answers no better with the adapter, or not enough."""
    QUALITY_LOSS = "QualityLoss"
    """On the model's own golden set it answers worse than the model alone, by more than is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterReport:
    """Termination message of the containers `prepare` (too few examples) and `judge` of a training. Shares
    are of answers as expected, 0..1; None where nothing was measured. No text of any example is in it."""

    outcome: str
    """Of TrainOutcome."""
    message: str = ""
    sha256: str = ""
    size_bytes: int = 0
    base_digest: str = ""
    """Manifest digest of the model's own files, `sha256:<hex>`."""
    examples: int = 0
    """That were trained on."""
    held_out: int = 0
    """That were kept for the judgement."""
    before: float | None = None
    """On the held-out examples, with what serves now; `after` with the new adapter."""
    after: float | None = None
    golden_samples: int = 0
    golden_before: float | None = None
    """On the golden set, without any training; `golden_after` with the new one."""
    golden_after: float | None = None


Report = PublishReport | EvaluateReport | AdapterReport
_KINDS: Final = {kind.__name__: kind for kind in (PublishReport, EvaluateReport, AdapterReport)}


def to_message(report: Report) -> str:
    """The termination message."""
    return json.dumps({"report": type(report).__name__, **asdict(report)}, separators=(",", ":"))


def parse_report(text: str) -> Report | None:
    """Inverse of `to_message`; None for anything else (a node may have been tampered with)."""
    try:
        body = json.loads(text)
        kind: Any = _KINDS[body.pop("report")]
        return cast(Report, kind(**body))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
