# SPDX-License-Identifier: Apache-2.0
"""Revisions: what identifies one, and what its ControllerRevision stores.

A revision's pod templates are rendered once, when it is made, and stored. Later operators apply
what is stored, so an upgrade of the operator changes no template and restarts no pod.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from slmops.api import SLMDeploymentSpec
from slmops.api.base import NAME_PATTERN, LabelSelector, quantity_value
from slmops.api.spec import Signature, Source, Variant
from slmops.model.geometry import Geometry, read_geometry
from slmops.model.observed import Resolved
from slmops.planning.adapters import adapters_to_body, join_adapters
from slmops.planning.effective import ProfileRule, override_of, profile_of, rules_of
from slmops.planning.needs import Need, read_need
from slmwire.manifest import Manifest, parse_manifest

REVISION_LENGTH: Final = 10
SCHEMA: Final = 1
SCHEMA_WITH_OVERRIDES: Final = 2
"""Of revisions that have some: operators before them would give a site's variants to all nodes."""


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values have equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def source_hash(source: Source) -> str:
    """Identity of a source as written in spec, 16 hex digits."""
    return hashlib.sha256(canonical(source.to_body()).encode()).hexdigest()[:16]


def resolution_key(source: Source, signature: Signature | None) -> str:
    """Identity of a source and of what its signature is checked by: other keys ask again."""
    if signature is None:
        return source_hash(source)
    text = canonical([source_hash(source), signature.to_body()])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def revision_of(spec: SLMDeploymentSpec, digests: Mapping[str, str]) -> str:
    """First 10 hex digits of the hash of what changes the pods.

    `digests` maps each variant's name to its manifest digest. Placement's node selector (with mode
    PerNode), rollout, distribution, the Service itself and history do not change pods; cache limits take
    effect with the next revision; the operator's defaults are left out so that changing one rolls nothing
    out.
    """
    body = {
        # Who must have signed the files, and who named them, does not change the files.
        "model": spec.model.model_copy(update={"signature": None, "from_": None}).to_body(),
        "variants": [variant.to_body() | {"digest": digests[variant.name]} for variant in spec.variants],
        "tolerations": [toleration.to_body() for toleration in spec.placement.tolerations],
        "priorityClassName": spec.placement.priority_class_name or "",
        "runtime": spec.runtime.to_body(),
        "hostPath": spec.cache.host_path,
        "evaluate": spec.evaluation.enabled,
    }
    if spec.feedback is not None and spec.feedback.refusal_phrases:
        # The rules of spec.feedback change no pod.
        body |= {"refusalPhrases": sorted(spec.feedback.refusal_phrases)}
    if spec.placement.mode == "Replicas":
        # Here the node selector is part of the pods. Nothing may be added for mode PerNode.
        body |= {"mode": "Replicas", "nodeSelector": spec.placement.node_selector.to_body()}
    if rules_of(spec):
        # Which class takes what decides which pod a node gets. Nothing may be added without classes.
        body |= {"profiles": [rule.to_body() for rule in rules_of(spec)]}
    access = {"auth": spec.service.auth, "tls": spec.service.tls}
    if given := {name: part.to_body() for name, part in access.items() if part is not None}:
        # Which Secrets, not what is in them: the server takes that up by itself.
        body |= {"access": given}
    return hashlib.sha256(canonical(body).encode()).hexdigest()[:REVISION_LENGTH]


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionVariant:
    """One variant of a stored revision."""

    name: str
    node_selector: LabelSelector
    memory_bytes: int
    """Memory request of the inference container."""
    manifest: Manifest
    source_hash: str
    """Hash of the source in spec that the manifest was resolved from."""
    reference: str
    """What a mutable reference stood for."""
    signature: str
    """Text of the signature that was read with the files; empty when spec asked for none."""
    serve_template: Mapping[str, Any]
    prefetch_template: Mapping[str, Any]
    profile: str = ""
    """DeviceProfile whose nodes it is for; empty: nodes that are of none."""
    override: str = ""
    """Override whose nodes it is for; empty: nodes that none is for."""
    geometry: Geometry | None = None
    need: Need | None = None
    """What `memory_bytes` is made up of, where it was computed."""
    base: Manifest | None = None
    """The source's own files, where `manifest` has adapters, too."""

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return self.manifest.size_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """A revision, parsed from the data of its ControllerRevision."""

    revision: str
    number: int
    model_version: str
    variants: tuple[RevisionVariant, ...]
    profiles: tuple[ProfileRule, ...] = ()
    """The class that counts first comes first; a node takes a variant of its class or none."""
    model_from: str = ""
    """SLMModel that the version is of."""

    def variant(self, name: str) -> RevisionVariant | None:
        """The variant of that name, if this revision has it."""
        return next((variant for variant in self.variants if variant.name == name), None)


def build_revision_data(
    spec: SLMDeploymentSpec,
    *,
    resolved: Mapping[str, Resolved],
    templates: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]],
    needs: Mapping[str, Need] | None = None,
) -> dict[str, Any]:
    """`data` of a ControllerRevision; `templates` maps a variant to (serve, prefetch) templates, `needs` to
    what its memory request was computed from."""
    first_with: dict[str, str] = {}

    def entry(variant: Variant) -> dict[str, Any]:
        serve, prefetch = templates[variant.name]
        found = resolved[variant.name]
        text = (found.base or found.manifest).to_json()
        # Files that several classes take are stored once, adapters apart: the whole must fit one object.
        same = first_with.setdefault(text, variant.name) if profile_of(variant) or rules_of(spec) else ""
        files: dict[str, Any] = {"manifest": json.loads(text)}
        need = (needs or {}).get(variant.name)
        optional = {
            "signature": found.signature.text if found.signature is not None else "",
            "profile": profile_of(variant),
            "override": override_of(variant),
            "adapters": adapters_to_body(found),
            "geometry": found.geometry.to_body() if found.geometry is not None else None,
            "need": need.to_body() if need is not None and need.given_bytes is None else None,
        }
        return {
            "name": variant.name,
            "nodeSelector": variant.node_selector.to_body(),
            "memory": variant.resources.requests.memory or "0",
            **(files if same in ("", variant.name) else {"filesOf": same}),
            "sourceHash": source_hash(variant.source),
            "reference": found.reference,
            "serve": serve,
            "prefetch": prefetch,
        } | {key: value for key, value in optional.items() if value}

    rules = [rule.to_body() for rule in rules_of(spec)]
    source = spec.model.from_
    return {
        "schema": SCHEMA_WITH_OVERRIDES if any(rule.override for rule in rules_of(spec)) else SCHEMA,
        "modelVersion": spec.model.version,
        "variants": [entry(variant) for variant in spec.variants],
        **({"profiles": rules} if rules else {}),
        **({"modelFrom": source.name} if source is not None else {}),
    }


def parse_revision(revision: str, number: int, data: Mapping[str, Any]) -> Revision:
    """Inverse of `build_revision_data`; ValueError, KeyError or TypeError if somebody altered it.

    A record of another schema (made by a later operator) is refused rather than half understood.
    """
    if data["schema"] not in (SCHEMA, SCHEMA_WITH_OVERRIDES):
        raise ValueError(f"schema {data['schema']!r} is neither {SCHEMA} nor {SCHEMA_WITH_OVERRIDES}")
    for entry in data["variants"]:
        _check_entry(entry)
    manifests = {
        str(entry["name"]): parse_manifest(json.dumps(entry["manifest"]))
        for entry in data["variants"]
        if "filesOf" not in entry
    }
    own = {str(e["name"]): manifests[str(e.get("filesOf") or e["name"])] for e in data["variants"]}
    files = own | {
        str(e["name"]): join_adapters(own[str(e["name"])], e["adapters"])
        for e in data["variants"]
        if e.get("adapters")
    }
    return Revision(
        revision=revision,
        number=number,
        model_version=str(data["modelVersion"]),
        variants=tuple(
            RevisionVariant(
                name=str(entry["name"]),
                node_selector=LabelSelector.model_validate(entry["nodeSelector"]),
                memory_bytes=int(quantity_value(str(entry["memory"]))),
                manifest=files[str(entry["name"])],
                base=own[str(entry["name"])] if entry.get("adapters") else None,
                source_hash=str(entry["sourceHash"]),
                reference=str(entry["reference"]),
                signature=str(entry.get("signature", "")),
                serve_template=entry["serve"],
                prefetch_template=entry["prefetch"],
                profile=str(entry.get("profile", "")),
                override=str(entry.get("override", "")),
                geometry=read_geometry(entry.get("geometry")),
                need=read_need(entry.get("need")),
            )
            for entry in data["variants"]
        ),
        profiles=tuple(ProfileRule.model_validate(rule) for rule in data.get("profiles", ())),
        model_from=str(data.get("modelFrom", "")),
    )


def _check_entry(entry: Mapping[str, Any]) -> None:
    """What objects are named and made of; ValueError or TypeError."""
    if len(entry["name"]) > 63 or not re.fullmatch(NAME_PATTERN, entry["name"]):
        raise ValueError(f"{entry['name']!r} is no name of a variant")
    for template in (entry["serve"], entry["prefetch"]):
        if not isinstance(template["spec"]["containers"], list) or not template["metadata"]["labels"]:
            raise ValueError(f"a pod template of variant {entry['name']} is none")
