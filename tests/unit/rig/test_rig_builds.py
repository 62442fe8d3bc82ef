# SPDX-License-Identifier: Apache-2.0
"""Tools and images: what decides a rebuild, and what the archives hold."""

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from e2e.rig import tools
from e2e.rig.apt import parse_installed, parse_packages
from e2e.rig.base_image import parse_codename, parse_mirror, prune_base
from e2e.rig.images import ENGINE_RECIPES, RECIPES, hash_inputs, render_pip_config, select_recipes
from e2e.rig.oci import write_binary_image
from e2e.rig.paths import CHECKOUT, RIG_SOURCE, instance_dir
from e2e.rig.shell import RigError
from e2e.rig.tools import FAMILIES, FAMILY_OF, family_version, ldflags, module_version, source_dir


def test_every_family_has_its_module_files_and_a_version() -> None:
    for family in FAMILIES:
        assert (source_dir(family) / "go.mod").is_file(), family.name
        if family.module:
            assert (source_dir(family) / "go.sum").stat().st_size > 0, family.name
            assert family_version(family).startswith("v"), family.name
    assert len(FAMILY_OF) == sum(len(family.binaries) for family in FAMILIES)


def test_what_no_rig_needs_is_built_only_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    monkeypatch.setattr(tools, "build_family", lambda family: built.append(family.name))
    tools.build_tools()
    assert not {"argo-cd", "argo-rollouts", "kustomize", "promtool"} & set(built)
    assert len(built) == len(FAMILIES) - 4
    tools.build_tools(["argo-rollouts"])
    assert built[-1] == "argo-rollouts"


def test_version_is_read_from_either_form_of_require() -> None:
    assert module_version("require a.b/c v1.2.3\n", module="a.b/c") == "v1.2.3"
    assert (
        module_version("require (\n\ta.b/cd v9.9.9\n\ta.b/c v1.2.4 // indirect\n)", module="a.b/c")
        == "v1.2.4"
    )
    with pytest.raises(RigError, match="requires no"):
        module_version("module x\n", module="a.b/c")


def test_kubernetes_gets_its_version_stamped() -> None:
    kubernetes = FAMILY_OF["kubelet"]
    flags = ldflags(kubernetes, version="v1.36.3")
    assert "version.gitVersion=v1.36.3" in flags
    assert "version.gitMinor=36" in flags


def test_tag_changes_with_content_name_and_salt_but_not_with_bytecode(tmp_path: Path) -> None:
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "a.py").write_text("1")
    (tmp_path / "lock").write_text("x")
    paths = ("pkg", "lock")
    first = hash_inputs(tmp_path, paths=paths, salt="base")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "a.pyc").write_text("bytecode")
    assert hash_inputs(tmp_path, paths=paths, salt="base") == first
    assert hash_inputs(tmp_path, paths=("lock", "pkg"), salt="base") == first
    assert hash_inputs(tmp_path, paths=paths, salt="other") != first
    (package / "a.py").write_text("2")
    second = hash_inputs(tmp_path, paths=paths, salt="base")
    (package / "a.py").rename(package / "b.py")
    assert len({first, second, hash_inputs(tmp_path, paths=paths, salt="base")}) == 3


def test_recipes_name_everything_that_their_containerfiles_copy() -> None:
    for recipe in (*RECIPES, *ENGINE_RECIPES):
        lines = (CHECKOUT / recipe.containerfile).read_text().splitlines()
        copied = {line.split()[1] for line in lines if line.startswith("COPY ") and "--from" not in line}
        of_engine = {path for path in copied if "${ENGINE}" in path}
        wanted = {path.replace("${ENGINE}", recipe.engine) for path in of_engine if recipe.engine}
        assert (copied - of_engine) | wanted == set(recipe.inputs), recipe.name
        assert all((CHECKOUT / path).exists() for path in recipe.inputs)
        assert "USER 65532:65532" in lines
        assert "ARG BASE=python:3.11-slim-bookworm" in lines


def test_engines_images_are_built_only_by_name() -> None:
    assert select_recipes(()) == tuple(recipe for recipe in RECIPES if not recipe.on_request)
    assert [recipe.name for recipe in select_recipes(("slmops-runtime-openvino",))] == [
        "slmops-runtime-openvino"
    ]
    with pytest.raises(RigError, match="no image is called slmops-runtime-magic; there are slmops-operator"):
        select_recipes(("slmops-runtime", "slmops-runtime-magic"))


def test_pip_settings_pass_on_but_for_local_paths() -> None:
    text = render_pip_config(
        {"index-url": "U", "cert": "/c", "find-links": "/w", "user": "1", "timeout": "9"}
    )
    assert text == "[global]\nindex-url = U\ntimeout = 9\n"


def test_binary_image_is_a_deterministic_oci_archive(tmp_path: Path) -> None:
    binary = tmp_path / "tool"
    binary.write_bytes(b"\x7fELF")
    for name in ("one", "two"):
        write_binary_image(
            tmp_path / f"{name}.tar", reference="localhost/tool:7", binary=binary, entrypoint=["/tool"]
        )
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as archive:

        def read(name: str) -> bytes:
            member = archive.extractfile(name)
            assert member is not None
            return member.read()

        index = json.loads(read("index.json"))
        assert index["manifests"][0]["annotations"]["io.containerd.image.name"] == "localhost/tool:7"
        for name in archive.getnames():
            if name.startswith("blobs/"):
                assert hashlib.sha256(read(name)).hexdigest() == name.rpartition("/")[2]


def test_package_list_and_dpkg_output_are_read() -> None:
    assert parse_packages("# head\nrunc # why\n\n buildah\n") == ["runc", "buildah"]
    assert parse_installed("runc installed\nbuildah config-files\ntmux not-installed\n") == {"runc"}
    assert "runc" in parse_packages((RIG_SOURCE / "apt.txt").read_text())


def test_mirror_is_the_one_the_system_uses() -> None:
    lines = "bookworm contrib http://a/\nbookworm main http://b/\nbookworm-updates main http://c/\n"
    assert parse_mirror(lines, codename="bookworm") == "http://b/"
    assert parse_mirror("", codename="bookworm") == ""
    assert parse_codename('ID=debian\nVERSION_CODENAME="bookworm"\n') == "bookworm"
    with pytest.raises(RigError):
        parse_codename("ID=debian\n")


def test_pruning_keeps_licences_and_gives_python_its_name(tmp_path: Path) -> None:
    for file in ("usr/share/doc/x/copyright", "usr/share/doc/x/README", "usr/share/man/man1/x.1"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("text")
    (tmp_path / "usr/local/bin").mkdir(parents=True)
    prune_base(tmp_path)
    assert (tmp_path / "usr/share/doc/x/copyright").exists()
    assert not (tmp_path / "usr/share/doc/x/README").exists()
    assert list((tmp_path / "usr/share/man").iterdir()) == []
    assert (tmp_path / "usr/local/bin/python").is_symlink()


@pytest.mark.parametrize("name", ["", "Up", "a/b", "..", "-a", "a" * 40])
def test_a_rig_name_cannot_leave_its_directory(name: str) -> None:
    with pytest.raises(ValueError, match="rig name"):
        instance_dir(name)
