# SPDX-License-Identifier: Apache-2.0
"""What the Jobs of an SLMModel are told and what they report.

An *optimise* Job is one pod: `slmfetch` brings the source into a volume, each recipe step is an init
container of its own (so that the pod's status tells how far it is and which step failed), and the last
container publishes. An *evaluate* Job is one pod on a node of the device class: `slmfetch`, then
`slmserve` measures. Pods hold no Kubernetes credential: a report is the container's termination message.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
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


def to_message(report: PublishReport | EvaluateReport) -> str:
    """The termination message."""
    return json.dumps({"report": type(report).__name__, **asdict(report)}, separators=(",", ":"))


def parse_report(text: str) -> PublishReport | EvaluateReport | None:
    """Inverse of `to_message`; None for anything else (a node may have been tampered with)."""
    try:
        body = json.loads(text)
        kind: Any = {"PublishReport": PublishReport, "EvaluateReport": EvaluateReport}[body.pop("report")]
        return cast(PublishReport | EvaluateReport, kind(**body))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
