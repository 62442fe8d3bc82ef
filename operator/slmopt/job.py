# SPDX-License-Identifier: Apache-2.0
"""What a Job is told: `{"steps": [...], "publish": {...}, "sign": false}`; a recipe is the steps alone.

Each step is an object with one key, the name of the step, and its settings below it:

    {"quantizeInt8": {"exclude": []}}
    {"quantizeInt4": {"blockSize": 32, "accuracyLevel": 4, "symmetric": true, "algorithm": "rtn",
                      "embeddings": false, "exclude": ["lm_head"]}}
    {"prune": {"method": "magnitude", "sparsityPercent": 50, "scope": "matrix", "exclude": []}}
    {"prune": {"method": "nm", "pattern": "2:4", "exclude": []}}
    {"slice": {"feedForwardPercent": 12, "headsPercent": 0, "importance": "weights"}}
    {"loraInputs": {"rank": 8, "targets": ["/attn/", "/mlp/"]}}
    {"convert": {"to": "gguf", "type": "Q4_0"}}

`publish` has exactly one of

    {"oci": {"image": "HOST/REPO:TAG", "plainHttp": false}}
    {"s3": {"endpoint": "https://...", "region": "...", "bucket": "...", "prefix": "models/orders/"}}
    {"pvc": {"claim": "models", "path": "orders/int4", "mountPath": "/mnt/slmops-publish"}}

Everything that a step does not name has the default of its class below. Unknown fields are refused.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from slmopt.errors import JobError
from slmwire.jobs import PUBLISH_VOLUME_DIR

MAX_STEPS: Final = 20
PUBLISH_MOUNT: Final = PUBLISH_VOLUME_DIR
"""Where the operator mounts the claim that a `pvc` target names."""
MAX_RANK: Final = 256
LORA_TARGETS: Final = ("/attn/", "/mlp/")
"""The projections of attention and feed-forward of all layers; not the head."""
BLOCK_SIZES: Final = (16, 32, 64, 128, 256)
GGUF_TYPES: Final = ("F32", "F16", "Q8_0", "Q4_0")
CONVERT_TYPES: Final[Mapping[str, tuple[str, ...]]] = {
    "gguf": GGUF_TYPES,
    "onnx": ("fp32", "fp16", "int4"),
    "litert": ("dynamic_wi8_afp32", "dynamic_wi4b32_afp32"),
}
"""Types that each format knows; the first is the default."""
_IMAGE: Final = re.compile(
    r"(?P<host>[a-zA-Z0-9.-]+(:[0-9]{1,5})?)/(?P<repository>[a-z0-9]+([._/-]+[a-z0-9]+)*):"
    r"(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})"
)
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX: Final = re.compile(r"((?!\.{1,2}(/|$))[A-Za-z0-9_+@=.-]+(/|$))*")
"""As the API has it, dots alone excepted."""
_PATH: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]*(/[A-Za-z0-9_][A-Za-z0-9._+@-]*)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeInt8:
    """Matrices to 8-bit integers in blocks along the input."""

    block_size: int = 128
    exclude: tuple[str, ...] = ()
    """Parts of node names that are left as they are, `lm_head` say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeInt4:
    """Matrices to 4-bit integers in blocks along the input, weights only."""

    block_size: int = 32
    accuracy_level: int = 4
    """Of MatMulNBits: 1 computes in fp32, 4 in int8."""
    symmetric: bool = True
    algorithm: Literal["rtn", "kQuant"] = "rtn"
    """`rtn` rounds to nearest; `kQuant` searches the scale and offset of each block. Neither needs data."""
    embeddings: bool = False
    """The embedding table as well, as GatherBlockQuantized."""
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune:
    """Sets the smallest weights to zero; neither files nor the work shrink by that alone."""

    method: Literal["magnitude", "nm"]
    sparsity_percent: int = 50
    """Of `magnitude`."""
    scope: Literal["matrix", "global"] = "matrix"
    """Of `magnitude`: the share holds for each matrix, or for all of them together."""
    kept: int = 2
    group: int = 4
    """Of `nm`: so many weights of each group along the input stay."""
    exclude: tuple[str, ...] | None = None
    """None leaves the head out, where the model has one of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Takes whole feed-forward neurons and attention heads out: the model becomes smaller and faster."""

    feed_forward_percent: int = 0
    heads_percent: int = 0
    importance: Literal["weights", "activations"] = "weights"
    """By what neurons are ranked: their weights' norms, or what they do on the golden cases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraInputs:
    """Gives linear layers a low-rank branch that adapters fill; without one, answers stay what they are."""

    rank: int = 8
    targets: tuple[str, ...] = LORA_TARGETS
    """Parts of node names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Convert:
    """To another file format."""

    to: Literal["gguf", "litert", "onnx"]
    type: str


Step = QuantizeInt8 | QuantizeInt4 | Prune | Slice | LoraInputs | Convert


@dataclass(frozen=True, slots=True, kw_only=True)
class OciTarget:
    """A repository and tag of an OCI registry."""

    host: str
    repository: str
    tag: str
    plain_http: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Target:
    """A prefix (empty, or ending in /) in a bucket of an S3-compatible store."""

    endpoint: str
    """Without a slash at its end."""
    region: str
    bucket: str
    prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PvcTarget:
    """A folder in a mounted volume."""

    claim: str
    path: str
    """Relative to the volume's root."""
    mount_path: str = PUBLISH_MOUNT


Target = OciTarget | S3Target | PvcTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The whole file."""

    steps: tuple[Step, ...]
    target: Target | None = None
    """None in a recipe for a laptop."""
    sign: bool = False


class _Fields:
    """Takes the fields of one object and complains about what is left."""

    def __init__(self, where: str, body: Any) -> None:
        if not isinstance(body, Mapping):
            raise JobError(f"{where}: must be an object, it is {_shown(body)}")
        self._where, self._left = where, dict(body)

    def whole(self, name: str, default: int, *, least: int, most: int) -> int:
        value = self._left.pop(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(name, value, f"use a whole number from {least} to {most}")
        return value

    def choice(self, name: str, default: object, choices: Sequence[object]) -> Any:
        value = self._left.pop(name, default)
        # The API writes its values as Kubernetes does (Magnitude), people on a laptop as they like.
        known = {c.lower() if isinstance(c, str) else c: c for c in choices}
        wanted = value.lower() if isinstance(value, str) else value
        if isinstance(value, bool) or not isinstance(wanted, str | int) or wanted not in known:
            raise self.error(name, value, f"use one of {', '.join(map(str, choices))}")
        return known[wanted]

    def truth(self, name: str, default: object) -> bool:
        value = self._left.pop(name, default)
        if not isinstance(value, bool):
            raise self.error(name, value, "use true or false")
        return value

    def text(self, name: str, pattern: re.Pattern[str], cure: str, *, default: str | None = None) -> str:
        value = self._left.pop(name, default)
        if not isinstance(value, str) or (value != default and not pattern.fullmatch(value)):
            raise self.error(name, value, cure)
        return value

    def has(self, name: str) -> bool:
        return name in self._left

    def names(self, name: str, default: tuple[str, ...]) -> tuple[str, ...]:
        value = self._left.pop(name, list(default))
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise self.error(name, value, "use a list of parts of node names")
        return tuple(value)

    def finish(self) -> None:
        if self._left:
            names = ", ".join(sorted(str(name) for name in self._left)[:5])
            raise JobError(f"{self._where}: unknown field {names}; take it out")

    def error(self, name: str, value: Any, cure: str) -> JobError:
        shown = "missing" if value is None else _shown(value)
        return JobError(f"{self._where}.{name} is {shown}; {cure}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _parse_int8(fields: _Fields) -> Step:
    return QuantizeInt8(
        block_size=fields.choice("blockSize", 128, BLOCK_SIZES), exclude=fields.names("exclude", ())
    )


def _parse_int4(fields: _Fields) -> Step:
    return QuantizeInt4(
        block_size=fields.choice("blockSize", 32, BLOCK_SIZES),
        accuracy_level=fields.whole("accuracyLevel", 4, least=0, most=4),
        symmetric=fields.truth("symmetric", True),
        algorithm=fields.choice("algorithm", "rtn", ("rtn", "kQuant")),
        embeddings=fields.truth("embeddings", False),
        exclude=fields.names("exclude", ()),
    )


def _parse_prune(fields: _Fields) -> Step:
    method = fields.choice("method", None, ("magnitude", "nm"))
    exclude = fields.names("exclude", ()) if fields.has("exclude") else None
    sparsity = fields.whole("sparsityPercent", 50, least=1, most=95)
    scope = fields.choice("scope", "matrix", ("matrix", "global"))
    pattern = fields.text("pattern", re.compile(r"[1-9]:([2-9]|1[0-6])"), "use N:M, 2:4 say", default="2:4")
    kept, _, group = pattern.partition(":")
    if int(kept) >= int(group):
        raise fields.error("pattern", pattern, "N must be less than M, as in 2:4")
    return Prune(
        method=method,
        sparsity_percent=sparsity,
        scope=scope,
        kept=int(kept),
        group=int(group),
        exclude=exclude,
    )


def _parse_slice(fields: _Fields) -> Step:
    step = Slice(
        feed_forward_percent=fields.whole("feedForwardPercent", 0, least=0, most=90),
        heads_percent=fields.whole("headsPercent", 0, least=0, most=90),
        importance=fields.choice("importance", "weights", ("weights", "activations")),
    )
    if not step.feed_forward_percent and not step.heads_percent:
        raise fields.error("feedForwardPercent", 0, "set it or headsPercent above 0")
    return step


def _parse_lora(fields: _Fields) -> Step:
    rank = fields.whole("rank", 8, least=1, most=MAX_RANK)
    # The API writes an empty list for what nobody has set.
    return LoraInputs(rank=rank, targets=fields.names("targets", ()) or LORA_TARGETS)


def _parse_convert(fields: _Fields) -> Step:
    to = fields.choice("to", None, tuple(CONVERT_TYPES))
    return Convert(to=to, type=fields.choice("type", CONVERT_TYPES[to][0], CONVERT_TYPES[to]))


_STEPS: Final[Mapping[str, Callable[[_Fields], Step]]] = {
    "quantizeInt8": _parse_int8,
    "quantizeInt4": _parse_int4,
    "prune": _parse_prune,
    "slice": _parse_slice,
    "loraInputs": _parse_lora,
    "convert": _parse_convert,
}


def _parse_oci(fields: _Fields) -> Target:
    image = fields.text("image", _IMAGE, "use HOST/REPOSITORY:TAG with a repository in lower case")
    match = _IMAGE.fullmatch(image)
    assert match is not None
    return OciTarget(
        host=match["host"],
        repository=match["repository"],
        tag=match["tag"],
        plain_http=fields.truth("plainHttp", False),
    )


def _parse_s3(fields: _Fields) -> Target:
    region = fields.text("region", re.compile(r"[a-z0-9-]+"), "name the store's region", default="us-east-1")
    endpoint = fields.text(
        "endpoint",
        re.compile(r"https?://[^\s/?#@]+(/[^\s?#@]*)?"),
        "use http(s)://HOST[:PORT] without a query",
        default=f"https://s3.{region}.amazonaws.com",
    )
    bucket = fields.text("bucket", _BUCKET, "use the bucket's name")
    prefix = fields.text(
        "prefix", _PREFIX, "use folders of letters, digits and _+@=.- with a slash behind each", default=""
    )
    return S3Target(
        endpoint=endpoint.rstrip("/"),
        region=region,
        bucket=bucket,
        prefix=prefix if not prefix or prefix.endswith("/") else f"{prefix}/",
    )


def _parse_pvc(fields: _Fields) -> Target:
    return PvcTarget(
        claim=fields.text("claim", re.compile(r"[a-z0-9.-]+"), "name the claim", default=""),
        path=fields.text("path", _PATH, "use a path below the volume's root, of plain characters"),
        mount_path=fields.text(
            "mountPath", re.compile(r"/.*"), "use an absolute path", default=PUBLISH_MOUNT
        ),
    )


_TARGETS: Final[Mapping[str, Callable[[_Fields], Target]]] = {
    "oci": _parse_oci,
    "s3": _parse_s3,
    "pvc": _parse_pvc,
}
Parsed = TypeVar("Parsed")


def _parse_one_of(where: str, body: Any, parsers: Mapping[str, Callable[[_Fields], Parsed]]) -> Parsed:
    """An object with one key, which names what its value is."""
    if not isinstance(body, Mapping) or len(body) != 1 or next(iter(body)) not in parsers:
        raise JobError(f"{where} is {_shown(body)}; it must have exactly one of {', '.join(parsers)}")
    ((name, settings),) = body.items()
    fields = _Fields(f"{where}.{name}", {} if settings is None else settings)
    parsed = parsers[name](fields)
    fields.finish()
    return parsed


def parse_job(text: str | bytes) -> Job:
    """Read a job file or a recipe; raises JobError that names the field."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise JobError(f"the job file is not JSON: {str(error)[:200]}") from error
    if not isinstance(body, Mapping):
        raise JobError('the job file must be an object: {"steps": [...], "publish": {...}}')
    rows = body.get("steps")
    if not isinstance(rows, list) or len(rows) > MAX_STEPS:
        raise JobError(f"steps: must be a list of at most {MAX_STEPS} steps")
    target, sign = body.get("publish"), body.get("sign", False)
    if not isinstance(sign, bool):
        raise JobError(f"sign is {_shown(sign)}; use true or false")
    return Job(
        steps=tuple(_parse_one_of(f"steps[{i}]", row, _STEPS) for i, row in enumerate(rows)),
        target=None if target is None else _parse_one_of("publish", target, _TARGETS),
        sign=sign,
    )
