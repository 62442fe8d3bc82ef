# SPDX-License-Identifier: Apache-2.0
"""The history: what each ControllerRevision holds, and readable differences between two of them."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from slmcli.errors import RefusedError, UsageError
from slmcli.output import to_yaml
from slmcli.safe import clean_tree
from slmcli.view import Body, DeploymentView
from slmops.api import SLMDeploymentSpec
from slmops.planning.revision import source_hash
from slmwire.labels import REVISION
from slmwire.manifest import ManifestFile, digest_of

COMPUTED: Final = "computed"
"""Memory request that spec does not give."""
_HASH: Final = re.compile(r"[0-9a-f]{4,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVariant:
    """One variant of a stored revision."""

    name: str
    digest: str
    """`sha256:<hex>`; empty when the record is not understood."""
    size_bytes: int
    reference: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRevision:
    """A ControllerRevision. `states` holds any of stable, update, failed, pinned."""

    number: int
    revision: str
    model_version: str
    variants: tuple[StoredVariant, ...]
    states: tuple[str, ...]
    created_at: str | None
    data: Mapping[str, Any]


def read_revisions(view: DeploymentView, bodies: Iterable[Body]) -> tuple[StoredRevision, ...]:
    """Revisions of this very object (not of one of its name before), the oldest first.

    Records that a newer operator wrote are read as far as they are understood.
    """
    cleaned = [clean_tree(body) for body in bodies]
    found = [_read(view, body) for body in cleaned if _belongs(view, body)]
    return tuple(sorted(found, key=lambda revision: revision.number))


def _belongs(view: DeploymentView, body: Body) -> bool:
    owners = body.get("metadata", {}).get("ownerReferences") or []
    return any(owner.get("uid") == view.uid for owner in owners)


def _read(view: DeploymentView, body: Body) -> StoredRevision:
    metadata = body.get("metadata") or {}
    data = body.get("data") or {}
    name = str((metadata.get("labels") or {}).get(REVISION) or metadata.get("name", "").rpartition("-")[2])
    variants = data.get("variants")
    return StoredRevision(
        number=int(body.get("revision") or 0),
        revision=name,
        model_version=str(data.get("modelVersion", "")),
        variants=tuple(_variant(entry, variants) for entry in variants if isinstance(entry, Mapping))
        if isinstance(variants, list)
        else (),
        states=_states(view, name),
        created_at=metadata.get("creationTimestamp"),
        data=data,
    )


def _variant(entry: Mapping[str, Any], entries: Sequence[Any]) -> StoredVariant:
    files = _files(entry, entries)
    return StoredVariant(
        name=str(entry.get("name", "")),
        digest=digest_of(files) if files else "",
        size_bytes=sum(file.size for file in files),
        reference=str(entry.get("reference", "")),
    )


def _files(entry: Mapping[str, Any], entries: Sequence[Any]) -> list[ManifestFile]:
    # Files that several variants have are stored with the first of them, adapters with each.
    named = (e for e in entries if isinstance(e, Mapping) and e.get("name") == entry.get("filesOf"))
    owner = next(named, entry) if "filesOf" in entry else entry
    try:
        rows = {str(row["path"]): row for row in (*owner["manifest"]["files"], *entry.get("adapters", ()))}
        return [
            ManifestFile(path=path, size=int(row["size"]), sha256=str(row["sha256"]))
            for path, row in sorted(rows.items())
        ]
    except (KeyError, TypeError, ValueError):
        return []


def _states(view: DeploymentView, revision: str) -> tuple[str, ...]:
    status = view.status
    if status is None:
        return ()
    states = {
        "stable": status.stable_revision == revision,
        "update": status.update_revision == revision and status.stable_revision != revision,
        "failed": any(entry.revision == revision for entry in status.failed_revisions),
        "pinned": status.pinned is not None and status.pinned.revision == revision,
    }
    return tuple(name for name, holds in states.items() if holds)


def find_revision(revisions: Sequence[StoredRevision], wanted: str) -> StoredRevision:
    """By name, number or the beginning of a name; UsageError for none or for several."""
    exact = [r for r in revisions if r.revision == wanted]
    numbered = [r for r in revisions if wanted.isdigit() and r.number == int(wanted)]
    begun = [r for r in revisions if _HASH.fullmatch(wanted) and r.revision.startswith(wanted)]
    found = exact or numbered or begun
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{r.number} ({r.revision})" for r in revisions) or "none"
    problem = "several revisions begin so" if found else "no such revision is kept"
    raise UsageError(f"revision {wanted}: {problem}; kept are {known}")


def revision_before(view: DeploymentView, revisions: Sequence[StoredRevision]) -> StoredRevision:
    """The newest revision that is older than the stable one and has not failed; RefusedError for none."""
    stable = next((r for r in revisions if "stable" in r.states), None)
    if stable is None:
        raise RefusedError(
            "there is no stable revision to go back from; name a revision of kubectl slm history with --to"
        )
    earlier = [r for r in revisions if r.number < stable.number and "failed" not in r.states]
    if not earlier:
        raise RefusedError(
            f"no revision older than the stable one ({stable.revision}) is kept; spec.revisionHistoryLimit "
            "says how many are, kubectl slm history shows them"
        )
    return earlier[-1]


def describe_data(stored: StoredRevision, pods: Sequence[str] = ("serve",)) -> dict[str, Any]:
    """A record as something to read: files by path, lists of named things as maps, the revision's own
    name, which differs always, replaced. `pods` may hold `serve` and `prefetch`."""
    variants = stored.data.get("variants")
    entries = variants if isinstance(variants, list) else []
    return {
        "modelVersion": stored.model_version,
        "variants": {
            str(entry.get("name", "")): {
                "nodeSelector": entry.get("nodeSelector") or {},
                "memory": entry.get("memory"),
                "reference": entry.get("reference"),
                "digest": _variant(entry, entries).digest,
                "files": {f.path: f"{f.size} bytes sha256:{f.sha256}" for f in _files(entry, entries)},
            }
            | {f"{pod} pod": _readable(entry.get(pod), stored.revision) for pod in pods}
            for entry in entries
            if isinstance(entry, Mapping)
        },
    }


def _readable(value: Any, revision: str) -> Any:
    if isinstance(value, str):
        return value.replace(revision, "REVISION") if revision else value
    if isinstance(value, Mapping):
        return {_readable(key, revision): _readable(inner, revision) for key, inner in value.items()}
    if not isinstance(value, list):
        return value
    names = [item.get("name") if isinstance(item, Mapping) else None for item in value]
    if value and all(isinstance(name, str) for name in names) and len(set(names)) == len(names):
        return {
            name: _entry({key: inner for key, inner in item.items() if key != "name"}, revision)
            for name, item in zip(names, value, strict=True)
        }
    return [_readable(item, revision) for item in value]


def _entry(rest: dict[str, Any], revision: str) -> Any:
    """`{name: A, value: B}` reads best as `A: B`."""
    return _readable(rest["value"] if set(rest) == {"value"} else rest, revision)


def describe_spec(spec: SLMDeploymentSpec) -> dict[str, Any]:
    """What of a spec can be held against a record before its files are known."""
    return {
        "modelVersion": spec.model.version,
        "variants": {
            variant.name: {
                "nodeSelector": variant.node_selector.to_body(),
                "memory": variant.resources.requests.memory or COMPUTED,
                "sourceHash": source_hash(variant.source),
            }
            for variant in spec.variants
        },
    }


def describe_like_spec(stored: StoredRevision) -> dict[str, Any]:
    """The same of a record; what DeviceProfiles and overrides made of its variants is left out."""
    variants = stored.data.get("variants")
    entries = [e for e in variants if isinstance(e, Mapping)] if isinstance(variants, list) else []
    return {
        "modelVersion": stored.model_version,
        "variants": {
            str(entry.get("name", "")): {
                "nodeSelector": entry.get("nodeSelector"),
                "memory": COMPUTED if "need" in entry else entry.get("memory"),
                "sourceHash": entry.get("sourceHash"),
            }
            for entry in entries
            if "profile" not in entry and "override" not in entry
        },
    }


def diff_lines(old: Any, new: Any, *, old_name: str, new_name: str) -> tuple[str, ...]:
    """Unified difference of two values as YAML; empty when they are equal."""
    before, after = (to_yaml(value).splitlines() for value in (old, new))
    return tuple(difflib.unified_diff(before, after, old_name, new_name, lineterm=""))
