# SPDX-License-Identifier: Apache-2.0
"""What `fit` works on: the spec of a file, nodes and profiles, and how large each source is."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urljoin

import urllib3
import yaml
from pydantic import ValidationError

from slmcli.errors import RefusedError, UsageError
from slmcli.models import read_model
from slmcli.observe import observe_node
from slmcli.safe import clean, clean_tree
from slmcli.view import Body
from slmops.api import KIND, SLMDeploymentSpec
from slmops.api.profile import PROFILE_KIND, DeviceProfileSpec
from slmops.api.slmmodel_status import SLMModelStatus
from slmops.api.source import SourceFile
from slmops.api.spec import ModelSource, Source, Variant
from slmops.api.status import VariantStatus
from slmops.model.geometry import GEOMETRY_FILES, MAX_GEOMETRY_BYTES, parse_geometry
from slmops.model.observed import NodeView, ProfileView, Resolved
from slmops.model.offers import OfferedVersion
from slmops.planning.follow import follow
from slmops.planning.resolution import known_sources
from slmops.planning.revision import Revision, parse_revision, source_hash
from slmops.planning.slmmodel.offer import to_offer
from slmwire.manifest import Manifest, ManifestError, ManifestFile, parse_manifest

MAX_MANIFEST_BYTES: Final = 1 << 20
_TIMEOUT: Final = urllib3.Timeout(connect=5.0, read=15.0)
Fetch = Callable[[str, int], bytes]
"""Reads at most so many bytes of a URL; UsageError when that fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What the files of the command line hold."""

    name: str
    namespace: str
    """Empty where the file says none."""
    spec: SLMDeploymentSpec
    profiles: tuple[ProfileView, ...]


def read_written(path: Path) -> Written:
    """One SLMDeployment and any DeviceProfiles. UsageError names the place and the cure."""
    documents = read_documents(path)
    found = [d for d in documents if d.get("kind") == KIND]
    if len(found) != 1:
        raise UsageError(f"{path}: holds {len(found)} objects of kind {KIND}; give a file with exactly one")
    metadata = found[0].get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    try:
        spec = SLMDeploymentSpec.model_validate(found[0].get("spec") or {})
    except ValidationError as error:
        raise UsageError(f"{path}: {_first(error)}") from None
    if spec.model.from_ is None and not spec.variants:
        raise UsageError(f"{path}: spec.variants: give at least 1")
    return Written(
        name=str(metadata.get("name") or ""),
        namespace=str(metadata.get("namespace") or ""),
        spec=spec,
        profiles=tuple(read_profiles(str(path), documents)),
    )


def read_documents(path: Path) -> list[dict[str, Any]]:
    """The YAML documents of a file, those of a List one by one."""
    try:
        loaded = [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if d is not None]
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    result: list[dict[str, Any]] = []
    for document in loaded:
        items = document.get("items") if isinstance(document, Mapping) else document
        for item in items if isinstance(items, list) else [document]:
            if not isinstance(item, Mapping):
                raise UsageError(f"{path}: holds {type(item).__name__} where an object is to be")
            result.append(dict(item))
    return result


def read_profiles(where: str, bodies: Iterable[Mapping[str, Any]]) -> list[ProfileView]:
    """The DeviceProfiles among objects."""
    result = []
    for body in bodies:
        if body.get("kind", PROFILE_KIND) != PROFILE_KIND:
            continue
        metadata = body.get("metadata")
        name = str(metadata.get("name") or "") if isinstance(metadata, Mapping) else ""
        if not name:
            raise UsageError(f"{where}: metadata.name of a {PROFILE_KIND} is missing")
        try:
            spec = DeviceProfileSpec.model_validate(body.get("spec") or {})
        except ValidationError as error:
            raise UsageError(f"{where}: {PROFILE_KIND} {name}: {_first(error)}") from None
        result.append(ProfileView(name=name, spec=spec))
    return result


def read_nodes_file(path: Path) -> tuple[list[NodeView], list[ProfileView]]:
    """Nodes (as `kubectl get nodes -o yaml` prints them, or with name, labels and memory alone) and
    DeviceProfiles."""
    documents = read_documents(path)
    nodes = []
    for index, body in enumerate(documents):
        if body.get("kind") in (PROFILE_KIND, KIND):
            continue
        nodes.append(_node(f"{path}: node {index + 1}", body))
    profiles = read_profiles(str(path), [d for d in documents if d.get("kind") == PROFILE_KIND])
    if not nodes:
        raise UsageError(f"{path}: holds no node; give {{name, labels, memory}} or what kubectl prints")
    return nodes, profiles


def _node(where: str, body: Mapping[str, Any]) -> NodeView:
    if body.get("kind") == "Node":
        metadata = body.get("metadata")
        if not isinstance(metadata, Mapping) or not metadata.get("name"):
            raise UsageError(f"{where}: metadata.name is missing")
        return observe_node(clean_tree(dict(body)))
    name, labels, memory = body.get("name"), body.get("labels") or {}, body.get("memory")
    if not isinstance(name, str) or not name:
        raise UsageError(f"{where}: name is missing")
    if not isinstance(labels, Mapping) or not all(isinstance(v, str) for v in labels.values()):
        raise UsageError(f"{where}: labels must map texts to texts; put numbers and true into quotes")
    node = {
        "metadata": {"name": name, "labels": dict(labels)},
        "status": {"allocatable": {"memory": str(memory)}} if memory is not None else {},
    }
    view = observe_node(clean_tree(node))
    if memory is not None and not view.allocatable_memory_bytes:
        raise UsageError(f"{where}: memory: {memory!r} is not a quantity such as 4Gi")
    return view


def merge_profiles(known: Iterable[ProfileView], changed: Iterable[ProfileView]) -> list[ProfileView]:
    """Those of the cluster with those of the files in the place of theirs."""
    return list(({p.name: p for p in known} | {p.name: p for p in changed}).values())


def find_offered(source: ModelSource, body: Body, *, namespace: str, present: str) -> OfferedVersion:
    """The version of an SLMModel that the deployment would run; RefusedError says why there is none."""
    view = read_model(body)
    if view.notes:
        raise RefusedError(f"SLMModel {source.name}: {view.notes[0]}")
    offer = to_offer(namespace, source.name, view.status or SLMModelStatus())
    followed = follow(source, offer, present=present)
    if followed.version is None:
        raise RefusedError(f"spec.model.from: {followed.problem}")
    return followed.version


def sizes_of(offered: OfferedVersion) -> tuple[list[Variant], list[VariantStatus]]:
    """The sources of a version and how large it says that they are, for `find_sizes`."""
    variants = [Variant(name=entry.name, source=entry.source) for entry in offered.variants]
    sizes = [
        VariantStatus(
            name=entry.name,
            source_hash=source_hash(entry.source),
            digest="",
            reference="",
            size_bytes=entry.size_bytes,
        )
        for entry in offered.variants
        if entry.size_bytes
    ]
    return variants, sizes


def find_sizes(
    spec: SLMDeploymentSpec,
    *,
    revisions: Iterable[Body],
    variants: Iterable[VariantStatus],
    fetch: Fetch | None,
) -> tuple[dict[str, Resolved], list[str]]:
    """Files by source hash, as far as they can be found out, and notes about those that cannot.

    From revisions that are stored, from status, from sizes in spec, or from an HTTP manifest that needs no
    credential; `fetch` None asks nobody.
    """
    known = known_sources(_readable(revisions))
    sizes = {status.source_hash: status.size_bytes for status in variants}
    found: dict[str, Resolved] = {}
    notes: list[str] = []
    for variant in spec.variants:
        identity = source_hash(variant.source)
        if identity in found:
            continue
        resolved = known.get(identity) or _from_spec(variant.source)
        if resolved is None and identity in sizes:
            resolved = _of_size(sizes[identity])
        if resolved is None:
            try:
                resolved = _from_manifest(variant.source, fetch)
            except UsageError as error:
                notes.append(f"variant {variant.name}: {error}; its size is not known")
        if resolved is not None:
            found[identity] = resolved
    return found, notes


def _readable(bodies: Iterable[Body]) -> list[Revision]:
    result = []
    for body in bodies:
        try:
            number = int(body.get("revision") or 0)
            result.append(parse_revision(str(body["metadata"]["name"]), number, body.get("data") or {}))
        except (ValueError, KeyError, TypeError):
            continue
    return result


def _of_size(size_bytes: int) -> Resolved:
    file = ManifestFile(path="model", size=size_bytes, sha256="0" * 64)
    return Resolved(manifest=Manifest(files=(file,)), reference="")


def _from_spec(source: Source) -> Resolved | None:
    """Where spec itself lists every file with its size."""
    lists: list[list[SourceFile]] = [
        kind.files for kind in (source.http, source.s3, source.pvc, source.file) if kind is not None
    ]
    files = [
        ManifestFile(path=f.path, size=f.size, sha256=f.sha256)
        for listed in lists
        for f in listed
        if f.size is not None
    ]
    if not files or len(files) < sum(len(listed) for listed in lists):
        return None
    return Resolved(manifest=Manifest(files=tuple(files)), reference="")


def _from_manifest(source: Source, fetch: Fetch | None) -> Resolved | None:
    http = source.http
    if http is None:
        raise UsageError("only the operator can ask this kind of source")
    if http.secret_ref is not None or http.basic_auth_ref is not None:
        raise UsageError("the source wants a credential, which is not read here")
    if http.files:
        raise UsageError("spec lists files without size")
    if fetch is None:
        raise UsageError("the source was not asked")
    try:
        manifest = parse_manifest(fetch(http.url, MAX_MANIFEST_BYTES))
    except ManifestError as error:
        raise UsageError(f"{http.url}: {error}") from None
    resolved = Resolved(manifest=manifest, reference="")
    for name in GEOMETRY_FILES:
        if any(file.path == name and file.size <= MAX_GEOMETRY_BYTES for file in manifest.files):
            try:
                text = fetch(urljoin(http.url.partition("?")[0], "./" + quote(name)), MAX_GEOMETRY_BYTES)
            except UsageError:
                break
            return Resolved(manifest=manifest, reference="", geometry=parse_geometry(text))
    return resolved


def fetch_url(url: str, limit_bytes: int) -> bytes:
    """Implements Fetch over HTTP(S), without credentials."""
    with urllib3.PoolManager(retries=urllib3.Retry(total=3, redirect=3), timeout=_TIMEOUT) as pool:
        try:
            response = pool.request("GET", url, preload_content=False)
            body = response.read(limit_bytes + 1)
            response.release_conn()
        except urllib3.exceptions.HTTPError as error:
            cause = clean(str(getattr(error, "reason", None) or error))
            raise UsageError(f"{url} cannot be read: {cause}") from None
    if response.status != 200:
        raise UsageError(f"{url} answers {response.status}")
    if len(body) > limit_bytes:
        raise UsageError(f"{url} has more than {limit_bytes} bytes")
    return bytes(body)


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = "spec"
    for part in problem["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return f"{path}: {clean(problem['msg'])}"
