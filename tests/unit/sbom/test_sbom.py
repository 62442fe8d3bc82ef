# SPDX-License-Identifier: Apache-2.0
"""Bills of materials: what a lock says of an image, as valid CycloneDX."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from e2e.sbom.bom import Image, choose_licenses, installed_licenses, render_bom
from e2e.sbom.lock import LockError, Package, read_lock

ROOT = Path(__file__).parents[3]
AT = datetime(2026, 1, 2, tzinfo=UTC)
ONE, TWO = "1" * 64, "2" * 64
LOCK = f"""\
# made by a tool
Alpha_Tool==1.0 \\
    --hash=sha256:{TWO} \\
    --hash=sha256:{ONE}
    # via slmops (pyproject.toml)
beta[extra]==2.1 ; sys_platform != 'win32' \\
    --hash=sha256:{ONE}
    # via
    #   slmops (pyproject.toml)
    #   alpha-tool
gamma==3 ; sys_platform == 'win32' \\
    --hash=sha256:{ONE}
    # via alpha-tool
delta==4.0 ; python_full_version >= '3.12' \\
    --hash=sha256:{ONE}
    # via beta
epsilon==5.0 ; platform_machine == 'aarch64' \\
    --hash=sha256:{ONE}
    # via
    #   beta
    #   gamma
"""


def document(image: Image) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(render_bom(image, at=AT, licenses=installed_licenses))
    return body


def test_a_lock_is_read_as_linux_gets_it() -> None:
    alpha, beta, epsilon = read_lock(LOCK)
    assert alpha == Package(name="alpha-tool", version="1.0", sha256=(ONE, TWO), direct=True)
    assert (beta.name, beta.version, set(beta.via), beta.direct) == ("beta", "2.1", {"alpha-tool"}, True)
    assert (set(epsilon.via), epsilon.direct) == ({"beta", "gamma"}, False)


@pytest.mark.parametrize(
    ("lock", "said"),
    [
        ("alpha>=1\n    --hash=sha256:" + ONE, "no pinned package: 'alpha>=1'"),
        ("alpha==1\n    # via slmops (pyproject.toml)\n", "alpha has no hash"),
        ("-r other.txt\n", "no pinned package"),
    ],
)
def test_a_lock_that_pins_too_little_is_refused(lock: str, said: str) -> None:
    with pytest.raises(LockError, match=re.escape(said)):
        read_lock(lock)


def test_the_document_says_what_the_lock_says() -> None:
    body = document(Image(name="slmops-test", version="9.1", packages=read_lock(LOCK)))
    assert (body["bomFormat"], body["specVersion"]) == ("CycloneDX", "1.6")
    root = body["metadata"]["component"]
    assert (root["name"], root["version"], root["type"]) == ("slmops-test", "9.1", "container")
    alpha = next(c for c in body["components"] if c["name"] == "alpha-tool")
    assert alpha["purl"] == "pkg:pypi/alpha-tool@1.0"
    assert {h["content"] for h in alpha["hashes"]} == {ONE, TWO}
    assert {h["alg"] for h in alpha["hashes"]} == {"SHA-256"}
    needs = {entry["ref"]: set(entry.get("dependsOn", ())) for entry in body["dependencies"]}
    assert needs["slmops-test@9.1"] == {"pkg:pypi/alpha-tool@1.0", "pkg:pypi/beta@2.1"}
    assert needs["pkg:pypi/alpha-tool@1.0"] == {"pkg:pypi/beta@2.1"}
    assert needs["pkg:pypi/beta@2.1"] == {"pkg:pypi/epsilon@5.0"}


def test_the_same_image_gives_the_same_text_and_another_one_another_serial() -> None:
    image = Image(name="slmops-test", version="9.1", packages=read_lock(LOCK))
    assert document(image) == document(image)
    other = Image(name="slmops-test", version="9.1", packages=read_lock(LOCK.replace(ONE, "3" * 64)))
    assert document(image)["serialNumber"] != document(other)["serialNumber"]


@pytest.mark.parametrize("extra", ["operator", "runtime"])
def test_the_images_locks_give_valid_documents_without_a_registry(extra: str) -> None:
    lock = (ROOT / "locks" / f"{extra}.txt").read_text()
    image = Image(name=f"slmops-{extra}", version="1", packages=read_lock(lock))
    text = render_bom(image, at=AT, licenses=installed_licenses)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    body = json.loads(text)
    pinned = set(re.findall(r"^([a-z0-9.-]+)(?:\[[^]]*\])?==", lock, re.MULTILINE))
    names = {component["name"] for component in body["components"]}
    assert names <= pinned and {"prometheus-client", "pydantic"} <= names
    assert pinned - names <= {"colorama", "httpx2-jsfetch"}  # of other systems
    assert len(names) == len(body["components"])
    assert all(c["hashes"] and c["purl"].startswith("pkg:pypi/") for c in body["components"])
    assert sum("licenses" in c for c in body["components"]) >= 0.8 * len(names)
    reached, todo = set(), [f"slmops-{extra}@1"]
    needs = {entry["ref"]: entry.get("dependsOn", []) for entry in body["dependencies"]}
    while todo:
        ref = todo.pop()
        if ref not in reached:
            reached.add(ref)
            todo += needs[ref]
    assert len(reached) == len(names) + 1  # everything is asked for by somebody
    assert re.findall(r"https?://[^\"]+", text) == [body["$schema"]]  # no address of a registry


@pytest.mark.parametrize(
    ("expression", "name", "classifiers", "found"),
    [
        ("Apache-2.0 AND MIT", "other", [], ["Apache-2.0 AND MIT"]),
        ("MIT", "", [], ["MIT"]),
        ("", "MIT License", [], ["MIT"]),
        ("", "Apache License, Version 2.0", [], ["Apache-2.0"]),
        ("", "Permission is\nhereby granted", ["License :: OSI Approved :: MIT License"], ["MIT"]),
        ("", "UNKNOWN", ["License :: OSI Approved", "Topic :: Text"], []),
        ("", "", ["License :: OSI Approved :: Some License"], ["Some License"]),
    ],
)
def test_the_best_of_the_metadata_is_taken(
    expression: str, name: str, classifiers: list[str], found: list[str]
) -> None:
    licenses: list[Any] = choose_licenses(expression=expression, name=name, classifiers=classifiers)
    said = [getattr(x, "value", None) or getattr(x, "id", None) or getattr(x, "name", None) for x in licenses]
    assert said == found


def test_another_version_than_the_installed_one_has_no_license() -> None:
    assert installed_licenses(Package(name="pydantic", version="0.0.1", sha256=(ONE,))) == []
    assert installed_licenses(Package(name="no-such-package", version="1", sha256=(ONE,))) == []
