# SPDX-License-Identifier: Apache-2.0
"""The product's images: built by buildah from the Containerfiles, pushed to the rig's registry.

The tag is a hash over everything that goes in, so an image that the registry has is not built again.
"""

import configparser
import hashlib
import json
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from e2e.rig.base_image import build_base
from e2e.rig.paths import CHECKOUT, cache_dir
from e2e.rig.progress import step
from e2e.rig.shell import RigError, run
from e2e.rig.topology import REGISTRY

MIB: Final = 1024 * 1024
_NO_NETWORK: Final = ("unshare", "--net")
_BUILD_SECONDS: Final = 900.0
_LONG_SECONDS: Final = 3600.0
"""For an image of gigabytes."""
_MANIFEST_TYPES: Final = (
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
)
_PIP_SETTINGS: Final = frozenset(
    {"default-timeout", "extra-index-url", "index-url", "proxy", "retries", "timeout", "trusted-host"}
)
_CERTIFICATE_VARIABLES: Final = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecipe:
    """One image: its Containerfile, what it copies, and how large it may be above its base."""

    name: str
    containerfile: str
    inputs: tuple[str, ...]
    limit_bytes: int
    engine: str = ""
    """Of a runtime with another engine: the end of its lock's name."""
    target: str = ""
    """Stage of the containerfile; empty for its last."""
    on_request: bool = False
    """Built only when it is named."""


RECIPES: Final = (
    ImageRecipe(
        name="slmops-operator",
        containerfile="Containerfile.operator",
        inputs=("locks/operator.txt", "e2e/rig/prune.sh", "operator/slmops", "operator/slmwire"),
        # A fifth of it is what verifies model signatures (model-signing, sigstore, cryptography).
        limit_bytes=260 * MIB,
    ),
    ImageRecipe(
        name="slmops-runtime",
        containerfile="Containerfile.runtime",
        inputs=(
            "locks/runtime.txt",
            "e2e/rig/prune.sh",
            "operator/slmserve",
            "operator/slmfetch",
            "operator/slmwire",
        ),
        limit_bytes=300 * MIB,
    ),
    ImageRecipe(
        name="slmops-optimizer",
        containerfile="Containerfile.optimizer",
        inputs=(
            "locks/optimizer.txt",
            "locks/optimizer-torch.txt",
            "e2e/rig/prune.sh",
            "operator/slmopt",
            "operator/slmfetch",
            "operator/slmwire",
        ),
        limit_bytes=500 * MIB,
        on_request=True,
    ),
)


def build_engine_recipe(engine: str, *, limit_bytes: int) -> ImageRecipe:
    """slmops-runtime with the libraries of locks/runtime-<engine>.txt in one more layer."""
    runtime = next(recipe for recipe in RECIPES if recipe.name == "slmops-runtime")
    return ImageRecipe(
        name=f"{runtime.name}-{engine}",
        containerfile=runtime.containerfile,
        inputs=(*runtime.inputs, f"locks/runtime-{engine}.txt"),
        limit_bytes=limit_bytes,
        engine=engine,
        target="engine",
    )


ENGINE_RECIPES: Final = (
    build_engine_recipe("llama-cpp", limit_bytes=330 * MIB),
    build_engine_recipe("openvino", limit_bytes=350 * MIB),
    build_engine_recipe("litert", limit_bytes=350 * MIB),
)
"""Built only where they are asked for by name."""

TORCH_RECIPE: Final = replace(
    next(recipe for recipe in RECIPES if recipe.name == "slmops-optimizer"),
    name="slmops-optimizer-torch",
    target="torch",
    limit_bytes=9 << 30,
)
"""Never in the registry: with its gigabytes it is built and tried in place, see `e2e.torch_image`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A pushed image. `added_bytes` is what it holds above its base, unpacked."""

    name: str
    tag: str
    digest: str
    added_bytes: int

    @property
    def repository(self) -> str:
        """Registry and name, without the tag."""
        return f"{REGISTRY}/{self.name}"

    @property
    def reference(self) -> str:
        """What a pod names."""
        return f"{self.repository}:{self.tag}"


def hash_inputs(root: Path, *, paths: tuple[str, ...], salt: str) -> str:
    """Twelve hex digits over the names and contents of files (directories: all below, no bytecode)."""
    digest = hashlib.sha256(salt.encode())
    for path in sorted(paths):
        start = root / path
        files = sorted(start.rglob("*")) if start.is_dir() else [start]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"\0{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def render_pip_config(settings: Mapping[str, str]) -> str:
    """pip.conf for the builder: where packages come from, and nothing that concerns this machine only."""
    lines = [f"{key} = {value}" for key, value in sorted(settings.items()) if key in _PIP_SETTINGS]
    return "\n".join(["[global]", *lines, ""])


def read_pip_settings() -> dict[str, str]:
    """This machine's pip settings: files in pip's order, then the environment."""
    files = (Path("/etc/pip.conf"), Path.home() / ".pip/pip.conf", Path.home() / ".config/pip/pip.conf")
    parser = configparser.RawConfigParser()
    parser.read([str(file) for file in files])
    settings: dict[str, str] = {}
    for section in ("global", "install"):
        if parser.has_section(section):
            settings.update(parser.items(section))
    for name, value in os.environ.items():
        if name.startswith("PIP_"):
            settings[name[len("PIP_") :].lower().replace("_", "-")] = value
    return settings


def build_images(names: tuple[str, ...] = (), *, source: Path = CHECKOUT) -> list[Image]:
    """Build and push what the registry lacks; return the named images, or all but those on request.

    `source` is the checkout that they are made of. The registry must run. Raises RigError for an unknown
    name, when a build fails, and when an image is over its limit.
    """
    return [_ensure_image(recipe, source) for recipe in select_recipes(names)]


def select_recipes(names: tuple[str, ...]) -> tuple[ImageRecipe, ...]:
    """The recipes with these names, or all of RECIPES but those on request; RigError for an unknown name."""
    known = {recipe.name: recipe for recipe in (*RECIPES, *ENGINE_RECIPES)}
    if unknown := sorted(set(names) - known.keys()):
        raise RigError(f"no image is called {unknown[0]}; there are {', '.join(known)}")
    return tuple(known[name] for name in dict.fromkeys(names)) or tuple(
        recipe for recipe in RECIPES if not recipe.on_request
    )


def _ensure_image(recipe: ImageRecipe, source: Path) -> Image:
    base = build_base()
    inputs = (recipe.containerfile, *recipe.inputs)
    tag = hash_inputs(source, paths=inputs, salt=base.name)
    found = _inspect(recipe, tag=tag)
    if found is not None:
        return found
    for path in inputs:
        if not (source / path).exists():
            raise RigError(f"{recipe.name} needs {path}, which does not exist")
    with step(f"build image {recipe.name}"):
        local_base = _import_base(base)
        reference = f"{REGISTRY}/{recipe.name}:{tag}"
        _build(recipe, source=source, base=local_base, reference=reference)
        added = _measure(reference) - _measure(local_base)
        if added > recipe.limit_bytes:
            raise RigError(
                f"{recipe.name} is {added / MIB:.0f} MiB above its base, over {recipe.limit_bytes / MIB:.0f}"
            )
        record = _size_record(recipe, tag=tag)
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(added))
    with step(f"push image {recipe.name}"):
        # Uncompressed: registry and nodes share this machine, and its processors are scarcer than its disk.
        _buildah("push", "--quiet", "--tls-verify=false", "--disable-compression", reference)
    pushed = _inspect(recipe, tag=tag)
    if pushed is None:
        raise RigError(f"the registry does not have {reference} after the push")
    return pushed


@contextmanager
def open_container(recipe: ImageRecipe, *, source: Path = CHECKOUT) -> Iterator["Container"]:
    """A container of the image, which is built where it is missing and stays in buildah's storage.

    Images of the same name that were made of other files are removed: some have gigabytes.
    """
    base = build_base()
    local_base = _import_base(base)
    tag = hash_inputs(source, paths=(recipe.containerfile, *recipe.inputs), salt=base.name)
    reference = f"localhost/{recipe.name}:{tag}"
    held = _buildah("images", "--format", "{{.Name}}:{{.Tag}}").split()
    for old in held:
        if old.rpartition(":")[0] == f"localhost/{recipe.name}" and old != reference:
            # A container that a killed run left behind holds it.
            _buildah("rmi", "--force", old)
    if reference not in held:
        with step(f"build image {recipe.name}"):
            _build(recipe, source=source, base=local_base, reference=reference, timeout_seconds=_LONG_SECONDS)
    name = _buildah("from", "--pull-never", reference).strip()
    try:
        yield Container(name=name, added_bytes=_measure(reference) - _measure(local_base))
    finally:
        _buildah("rm", name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container to run commands in."""

    name: str
    added_bytes: int
    """What its image holds above the base, unpacked."""

    def run(self, *command: str, volumes: Mapping[Path, str], timeout_seconds: float) -> str:
        """Output of a command as root of the container, without a network; RigError when it fails."""
        mounts = [f"--volume={host}:{place}" for host, place in volumes.items()]
        # With this isolation a container has the network of buildah itself, which is run in an empty one.
        options = ["--isolation=chroot", "--network=host", "--user=0:0", *mounts]
        return _buildah(
            *("run", *options, self.name, "--", *command), timeout_seconds=timeout_seconds, inside=_NO_NETWORK
        )


def _size_record(recipe: ImageRecipe, *, tag: str) -> Path:
    return cache_dir() / "image-sizes" / f"{recipe.name}-{tag}.json"


def _inspect(recipe: ImageRecipe, *, tag: str) -> Image | None:
    url = f"http://{REGISTRY}/v2/{recipe.name}/manifests/{tag}"
    request = urllib.request.Request(url, method="HEAD", headers={"Accept": _MANIFEST_TYPES})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            digest = answer.headers["Docker-Content-Digest"]
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise RigError(f"the registry answers {error.code} for {url}") from error
    except OSError as error:
        raise RigError(f"the registry at {REGISTRY} does not answer (is the rig up?): {error}") from error
    try:
        added = int(json.loads(_size_record(recipe, tag=tag).read_text()))
    except (OSError, ValueError):
        return None
    return Image(name=recipe.name, tag=tag, digest=digest, added_bytes=added)


def _buildah(
    *arguments: str | Path, timeout_seconds: float = _BUILD_SECONDS, inside: Sequence[str] = ()
) -> str:
    storage = cache_dir() / "buildah"
    places: list[str | Path] = [
        "--root",
        storage / "storage",
        "--runroot",
        storage / "run",
        "--storage-driver",
        "overlay",
    ]
    return run([*inside, "buildah", *places, *arguments], timeout_seconds=timeout_seconds).stdout


def _import_base(archive: Path) -> str:
    """The base in buildah's storage, put there where it is missing."""
    reference = f"localhost/slmops-base:{archive.stem.rpartition('-')[2]}"
    if reference.partition("/")[2] in _buildah("images", "--format", "{{.Name}}:{{.Tag}}"):
        return reference
    with tempfile.TemporaryDirectory(prefix="slmops-base-") as context:
        file = Path(context) / "Containerfile"
        file.write_text(f"FROM scratch\nADD {archive.name} /\n")
        _buildah("bud", "--quiet", "--isolation=chroot", "--tag", reference, "--file", file, archive.parent)
    return reference


def _build(
    recipe: ImageRecipe, *, source: Path, base: str, reference: str, timeout_seconds: float = _BUILD_SECONDS
) -> None:
    with tempfile.TemporaryDirectory(prefix="slmops-build-") as scratch:
        pip = Path(scratch) / "pip.conf"
        settings = read_pip_settings()
        certificates = next((os.environ[name] for name in _CERTIFICATE_VARIABLES if os.environ.get(name)), "")
        certificates = settings.get("cert", certificates)
        extra: list[str] = []
        text = render_pip_config(settings)
        if certificates and Path(certificates).is_file():
            text += "cert = /build/certificates.pem\n"
            extra = ["--secret", f"id=certificates,src={certificates}"]
        pip.write_text(text)
        _buildah(
            "bud",
            "--quiet",
            "--isolation=chroot",
            "--layers",
            "--network=host",
            f"--ignorefile={source / '.containerignore'}",
            f"--build-arg=BASE={base}",
            *((f"--build-arg=ENGINE={recipe.engine}",) if recipe.engine else ()),
            *((f"--target={recipe.target}",) if recipe.target else ()),
            "--secret",
            f"id=pip,src={pip}",
            *extra,
            "--tag",
            reference,
            "--file",
            source / recipe.containerfile,
            source,
            timeout_seconds=timeout_seconds,
        )


def _measure(reference: str) -> int:
    """Bytes of an image's files, unpacked: `du` of its mounted root."""
    container = _buildah("from", "--pull-never", reference).strip()
    try:
        root = _buildah("mount", container).strip()
        return int(run(["du", "-sb", root]).stdout.split()[0])
    finally:
        _buildah("rm", container)


def describe(image: Image) -> str:
    """One line for a person."""
    return f"{image.reference}  {image.added_bytes / MIB:.0f} MiB above the base  {image.digest}"
