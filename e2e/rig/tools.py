# SPDX-License-Identifier: Apache-2.0
"""Tools built from Go modules into the cache: one committed go.mod and go.sum per family.

A family is built once per content of its module files; the directory name carries the hash, and it
appears by rename, so a killed build leaves nothing that looks finished.
"""

import fcntl
import hashlib
import json
import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from e2e.rig.paths import RIG_SOURCE, tools_dir
from e2e.rig.progress import step
from e2e.rig.shell import RigError, run

BUILD_SECONDS: Final = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Binaries that come from one module graph. `module` is the one whose version names the build."""

    name: str
    module: str
    binaries: tuple[str, ...]
    cgo: bool = False
    tags: str = ""
    """Build tags, separated by commas."""
    installed_as: str = ""
    """What `go install` calls the only binary, where its package path gives it another name."""
    version_variable: str = ""
    """Go package of the gitVersion, gitMajor and gitMinor variables that the build must set."""
    by_name_only: bool = False
    """Built when it is named or asked for, and not with the rest: what no rig needs, and takes minutes."""


FAMILIES: Final = (
    Family(name="kine", module="github.com/k3s-io/kine", binaries=("kine",), cgo=True),
    Family(
        name="kubernetes",
        module="k8s.io/kubernetes",
        binaries=(
            "kube-apiserver",
            "kube-controller-manager",
            "kube-proxy",
            "kube-scheduler",
            "kubectl",
            "kubelet",
        ),
        # Without it every client sees v0.0.0, and Helm refuses charts that name a kubeVersion.
        version_variable="k8s.io/component-base/version",
    ),
    Family(
        name="containerd",
        module="github.com/containerd/containerd/v2",
        binaries=("containerd", "containerd-shim-runc-v2", "ctr"),
    ),
    Family(
        name="cni",
        module="github.com/containernetworking/plugins",
        binaries=("bridge", "host-local", "loopback", "portmap"),
    ),
    Family(name="pause", module="", binaries=("pause",)),
    Family(name="coredns", module="github.com/coredns/coredns", binaries=("coredns",)),
    Family(name="registry", module="github.com/distribution/distribution/v3", binaries=("registry",)),
    Family(name="versitygw", module="github.com/versity/versitygw", binaries=("versitygw",)),
    Family(
        name="prometheus",
        module="github.com/prometheus/prometheus",
        binaries=("prometheus",),
        # Debian's own is built without Kubernetes discovery; here every other discovery stays out, which
        # saves minutes of compiling cloud clients.
        tags="remove_all_sd,enable_kubernetes_sd",
    ),
    # A module of its own, so that a change here builds no Prometheus anew. The checks of rules ask for it.
    Family(
        name="promtool",
        module="github.com/prometheus/prometheus",
        binaries=("promtool",),
        tags="remove_all_sd,enable_kubernetes_sd",
        by_name_only=True,
    ),
    Family(name="helm", module="helm.sh/helm/v4", binaries=("helm",)),
    Family(name="kwok", module="sigs.k8s.io/kwok", binaries=("kwok",)),
    Family(name="etcd", module="go.etcd.io/etcd/server/v3", binaries=("etcd",), installed_as="server"),
    Family(
        name="argo-rollouts",
        module="github.com/argoproj/argo-rollouts",
        binaries=("rollouts-controller",),
        by_name_only=True,
    ),
    # The last series whose module zip holds all that it is built from: from 3.2 on a folder is missing.
    Family(
        name="argo-cd",
        module="github.com/argoproj/argo-cd/v3",
        binaries=("argocd",),
        installed_as="cmd",
        by_name_only=True,
    ),
    Family(
        name="kustomize",
        module="sigs.k8s.io/kustomize/kustomize/v5",
        binaries=("kustomize",),
        by_name_only=True,
    ),
)
"""In the order of need: a first `build` has the control plane's parts before the rest."""

FAMILY_OF: Final = {binary: family for family in FAMILIES for binary in family.binaries}


def source_dir(family: Family) -> Path:
    """Directory with the family's committed module files."""
    return RIG_SOURCE / "tools" / family.name


def module_version(go_mod: str, *, module: str) -> str:
    """The version that a go.mod text requires of `module`; raises RigError when it names none."""
    found = re.search(rf"^\s*(?:require\s+)?{re.escape(module)}\s+(v\S+)", go_mod, re.MULTILINE)
    if found is None:
        raise RigError(f"go.mod requires no {module}")
    return found.group(1)


def family_version(family: Family) -> str:
    """Version of the family's main module, or `local` for source that lies here."""
    if not family.module:
        return "local"
    return module_version((source_dir(family) / "go.mod").read_text(), module=family.module)


def ldflags(family: Family, *, version: str) -> str:
    """Linker flags: stripped, and with the version stamped in where the family needs it."""
    flags = "-s -w"
    if family.version_variable:
        major, minor = version.removeprefix("v").split(".")[:2]
        stamps = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
        flags += "".join(f" -X {family.version_variable}.{key}={value}" for key, value in stamps.items())
    return flags


def family_hash(family: Family) -> str:
    """Ten hex digits over everything committed that decides the binaries."""
    digest = hashlib.sha256()
    for path in sorted(source_dir(family).glob("*")):
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    digest.update(f"{family.cgo} {family.tags} {ldflags(family, version=family_version(family))}".encode())
    digest.update(platform.machine().encode())
    return digest.hexdigest()[:10]


def family_dir(family: Family) -> Path:
    """Where the family's binaries are, or will be."""
    return tools_dir() / f"{family.name}-{family_version(family)}-{family_hash(family)}"


def is_built(family: Family) -> bool:
    """Whether every binary of the family is in the cache."""
    return all((family_dir(family) / binary).is_file() for binary in family.binaries)


@contextmanager
def _locked(name: str) -> Iterator[None]:
    tools_dir().mkdir(parents=True, exist_ok=True)
    with (tools_dir() / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_family(family: Family) -> Path:
    """Build the family unless it is in the cache; return its directory.

    Runs `go install tool` under `nice` with the system's module settings. Raises RigError with the
    compiler's words when it fails.
    """
    if is_built(family):
        return family_dir(family)
    with _locked(family.name):
        if is_built(family):  # another process built it while we waited
            return family_dir(family)
        if shutil.which("go") is None:
            raise RigError("Go is not installed: the rig builds its tools with Go 1.26 or newer")
        target = family_dir(family)
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with step(f"build {family.name} {family_version(family)}", key=f"build {family.name}"):
            flags = ["-trimpath", "-mod=readonly", "-buildvcs=false", f"-tags={family.tags}"]
            link = ["-ldflags", ldflags(family, version=family_version(family))]
            run(
                ["nice", "-n", "5", "go", "install", *flags, *link, "tool" if family.module else "."],
                cwd=source_dir(family),
                env={
                    "CGO_ENABLED": "1" if family.cgo else "0",
                    "GOBIN": str(partial),
                    "GOFLAGS": "",
                    "GOWORK": "off",
                },
                timeout_seconds=BUILD_SECONDS,
            )
        if family.installed_as:
            (partial / family.installed_as).replace(partial / family.binaries[0])
        missing = [binary for binary in family.binaries if not (partial / binary).is_file()]
        if missing:
            raise RigError(f"the build of {family.name} made no {', '.join(missing)}")
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
    return target


def module_source(family: Family) -> Path:
    """Folder with the source of the family's main module, downloaded first if need be."""
    query = ["go", "mod", "download", "-json", family.module]
    answer = run(query, cwd=source_dir(family), env={"GOFLAGS": "-mod=mod", "GOWORK": "off"}).stdout
    return Path(json.loads(answer)["Dir"])


def tool(binary: str) -> Path:
    """Path of a tool, built first if need be; raises RigError for a name that no family has."""
    family = FAMILY_OF.get(binary)
    if family is None:
        raise RigError(f"no tool {binary!r}; there are: {', '.join(sorted(FAMILY_OF))}")
    return build_family(family) / binary


def build_tools(names: Sequence[str] = ()) -> None:
    """Build the named families, in the order of need; none named: all but those by name only."""
    unknown = set(names) - {family.name for family in FAMILIES}
    if unknown:
        raise RigError(f"no tool family {', '.join(sorted(unknown))}")
    for family in FAMILIES:
        if family.name in names or not (names or family.by_name_only):
            build_family(family)
