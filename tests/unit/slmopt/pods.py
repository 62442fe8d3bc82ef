# SPDX-License-Identifier: Apache-2.0
"""Runs the containers of a Job's pod as processes of this machine, one after the other, as a kubelet would.

Volumes are folders of a temporary one. Each process sees the paths of its own mounts: the constants of
`slmwire` that name a path, `/`-paths in arguments and in the environment are led there. A path that is not
mounted leads to a folder that is not there, and what a container writes into a read-only mount is noticed.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

CHECKOUT: Final = Path(__file__).resolve().parents[3]
TERMINATION_LOG: Final = "/dev/termination-log"
TERMINATION_BYTES: Final = 4096
_ANNOTATION: Final = re.compile(r"metadata\.annotations\['(.+)'\]")
_LAUNCH: Final = """
import json, runpy, sys
mounts, module, arguments = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3:]
import slmwire.jobs, slmwire.paths
def lead(path):
    for mount, folder in mounts:
        if path == mount or path.startswith(mount + "/"):
            return folder + path[len(mount):]
    return mounts[-1][1] + path
for holder in (slmwire.jobs, slmwire.paths):
    for name, value in vars(holder).items():
        if name.isupper() and isinstance(value, str) and value.startswith("/"):
            setattr(holder, name, lead(value))
sys.argv = [module, *arguments]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
Body = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How one container ended; `message` is its termination message."""

    name: str
    code: int
    message: str
    output: str


@dataclass(slots=True, kw_only=True)
class Node:
    """Where pods run: the cluster's Secrets by name, and the folders of its claims."""

    folder: Path
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    claims: Mapping[str, Path] = field(default_factory=dict)

    def run(self, job: Body) -> list[Ended]:
        """Containers of the Job's pod in order, up to the first that fails."""
        pod = job["spec"]["template"]
        place = self.folder / job["metadata"]["name"]
        volumes = {volume["name"]: self._volume(place, pod, volume) for volume in pod["spec"]["volumes"]}
        ended: list[Ended] = []
        for container in (*pod["spec"]["initContainers"], *pod["spec"]["containers"]):
            ended.append(_run(container, volumes, place / "containers" / container["name"]))
            if ended[-1].code:
                break
        return ended

    def _claims(self, pod: Body) -> list[tuple[str, Path]]:
        """Where the pod has claims: what it is told names files there."""
        names = {
            volume["name"]: self.claims[volume["persistentVolumeClaim"]["claimName"]]
            for volume in pod["spec"]["volumes"]
            if "persistentVolumeClaim" in volume
        }
        every = (*pod["spec"]["initContainers"], *pod["spec"]["containers"])
        mounts = {mount["mountPath"]: mount["name"] for one in every for mount in one["volumeMounts"]}
        return [(path, names[name]) for path, name in mounts.items() if name in names]

    def _volume(self, place: Path, pod: Body, volume: Body) -> Path:
        if "persistentVolumeClaim" in volume:
            claim: str = volume["persistentVolumeClaim"]["claimName"]
            return self.claims[claim]
        folder: Path = place / "volumes" / volume["name"]
        folder.mkdir(parents=True, exist_ok=True)
        if "downwardAPI" in volume:
            for item in volume["downwardAPI"]["items"]:
                match = _ANNOTATION.fullmatch(item["fieldRef"]["fieldPath"])
                assert match is not None
                text = pod["metadata"]["annotations"][match[1]]
                for mount, held in self._claims(pod):
                    text = text.replace(mount, str(held))
                (folder / item["path"]).write_text(text)
        if secret := volume.get("secret"):
            values = self.secrets[secret["secretName"]]
            for item in secret["items"]:
                if item["key"] in values or not secret.get("optional"):
                    (folder / item["path"]).write_text(values[item["key"]])
        return folder


def _run(container: Body, volumes: Mapping[str, Path], place: Path) -> Ended:
    place.mkdir(parents=True)
    log = place / "termination-log"
    log.touch()
    assert container["terminationMessagePath"] == TERMINATION_LOG
    mounts = [(TERMINATION_LOG, log)]
    closed = []
    for mount in container["volumeMounts"]:
        folder = volumes[mount["name"]] / mount.get("subPath", "")
        assert folder.is_dir(), f"{container['name']}: nothing made {mount}"
        mounts.append((mount["mountPath"], folder))
        closed += [folder] if mount.get("readOnly") else []
    mounts.sort(key=lambda row: -len(row[0]))
    rows = [(path, str(folder)) for path, folder in mounts]
    nothing = place / "nothing"

    def lead(text: str) -> str:
        if not text.startswith("/"):
            return text
        for path, folder in rows:
            if text == path or text.startswith(f"{path}/"):
                return folder + text.removeprefix(path)
        return f"{nothing}{text}"

    before = [_look(folder) for folder in closed]
    own = {entry["name"]: lead(entry["value"]) for entry in container["env"]}
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(CHECKOUT / "operator"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": lead("/tmp"),
        **own,
    }
    words: list[str] = [*container["command"], *container.get("args", [])]
    python, flag, module, *rest = words
    assert (python, flag in ("-m", "-c")) == ("python3", True)
    given = [lead(text) for text in rest]
    command = [sys.executable, "-c", module, *given]
    if flag == "-m":
        command = [sys.executable, "-c", _LAUNCH, json.dumps([*rows, ("", str(nothing))]), module, *given]
    done = subprocess.run(
        command,
        env=environment,
        cwd=lead("/tmp"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert not nothing.exists(), f"{container['name']} writes outside its mounts"
    assert [_look(folder) for folder in closed] == before, (
        f"{container['name']} writes into a read-only mount"
    )
    message = log.read_text()
    assert len(message.encode()) <= TERMINATION_BYTES
    output = done.stdout + done.stderr
    return Ended(name=container["name"], code=done.returncode, message=message, output=output)


def _look(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted([folder, *folder.rglob("*")])
    }
