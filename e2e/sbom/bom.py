# SPDX-License-Identifier: Apache-2.0
"""A CycloneDX bill of materials for one image."""

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from typing import Final

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.bom_ref import BomRef
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.dependency import Dependency
from cyclonedx.model.license import License
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from e2e.sbom.lock import Package

INDENT: Final = 1
_NAMESPACE: Final = uuid.UUID("5d3c1f0e-3f5c-5f0f-9a55-0d6a6a1f0b51")
_LONGEST_NAME: Final = 100
"""Longer License fields hold a whole text and no name."""

_SPDX: Final = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
"""Names that authors use, and that mean one license only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What a bill is about."""

    name: str
    version: str
    packages: tuple[Package, ...]


Licenses = Callable[[Package], Iterable[License]]


def render_bom(image: Image, *, at: datetime, licenses: Licenses) -> str:
    """JSON by CycloneDX 1.6. The same image and time give the same text; ValueError when it is not valid."""
    text = JsonV1Dot6(build_bom(image, at=at, licenses=licenses)).output_as_string(indent=INDENT)
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if problem is not None:
        raise ValueError(f"{image.name}: not valid CycloneDX 1.6: {str(problem)[:500]}")
    return text + "\n"


def build_bom(image: Image, *, at: datetime, licenses: Licenses) -> Bom:
    """Components with their hashes, and who asks for whom. Packages of the base image are not in it."""
    root = Component(
        name=image.name,
        version=image.version,
        type=ComponentType.CONTAINER,
        bom_ref=f"{image.name}@{image.version}",
        licenses=[LicenseFactory().make_with_id("Apache-2.0")],
        properties=[Property(name="slmops:scope", value="Python packages; not those of the base image")],
    )
    components = {package.name: _component(package, licenses) for package in image.packages}
    contents = "\n".join(f"{p.name}=={p.version} {' '.join(p.sha256)}" for p in image.packages)
    asked: dict[BomRef, list[Dependency]] = {root.bom_ref: []}
    asked |= {component.bom_ref: [] for component in components.values()}
    for package in image.packages:
        needed = Dependency(ref=components[package.name].bom_ref)
        if package.direct:
            asked[root.bom_ref].append(needed)
        for name in package.via & components.keys():
            asked[components[name].bom_ref].append(needed)
    return Bom(
        serial_number=uuid.uuid5(_NAMESPACE, f"{image.name} {image.version}\n{contents}"),
        metadata=BomMetaData(component=root, timestamp=at),
        components=components.values(),
        dependencies=[Dependency(ref=ref, dependencies=needs) for ref, needs in asked.items()],
    )


def _component(package: Package, licenses: Licenses) -> Component:
    purl = PackageURL(type="pypi", name=package.name, version=package.version)
    return Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        bom_ref=purl.to_string(),
        purl=purl,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest) for digest in package.sha256],
        licenses=licenses(package),
        properties=[
            Property(
                name="slmops:hashes", value="of each distribution that the lock accepts; one is installed"
            )
        ],
    )


def installed_licenses(package: Package) -> list[License]:
    """Licenses by the metadata of the installed package; none when another version, or none, is installed."""
    try:
        found = metadata.metadata(package.name)
    except metadata.PackageNotFoundError:
        return []
    if found["Version"] != package.version:
        return []
    return choose_licenses(
        expression="".join(found.get_all("License-Expression") or ()),
        name="".join(found.get_all("License") or ()),
        classifiers=found.get_all("Classifier") or (),
    )


def choose_licenses(*, expression: str, name: str, classifiers: Iterable[str]) -> list[License]:
    """The best that the metadata says: an SPDX expression, a short name, or classifiers."""
    factory = LicenseFactory()
    if expression:
        return [factory.make_from_string(expression)]
    short = name.strip()
    if short and "\n" not in short and len(short) <= _LONGEST_NAME and short.upper() != "UNKNOWN":
        return [factory.make_from_string(_SPDX.get(short, short))]
    names = [text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License :: ")]
    return [factory.make_from_string(_SPDX.get(text, text)) for text in names if text != "OSI Approved"]
