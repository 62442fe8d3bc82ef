# SPDX-License-Identifier: Apache-2.0
"""Which hosts a source names, held against the administrator's list (chart value allowedSourceHosts).

What servers redirect to is checked where the requests are made; this is for what spec says.
"""

from collections.abc import Iterator

from slmops.api import SLMDeploymentSpec
from slmops.api.overrides import Override
from slmops.api.slmmodel import Publish
from slmops.api.source import Source
from slmops.model.config import OperatorConfig
from slmops.model.hosts import HostPort, is_allowed_host, read_host
from slmops.planning.finding import Finding


def find_host_problem(where: str, source: Source, config: OperatorConfig) -> Finding | None:
    """What is wrong with the host of the source at `where` in the spec."""
    return _first_problem(where, _hosts_of(source, config), config)


def find_publish_host_problem(publish: Publish, config: OperatorConfig) -> Finding | None:
    """The same for where an SLMModel publishes."""
    return _first_problem("spec.publish", _publish_hosts(publish), config)


def find_variant_host_problem(spec: SLMDeploymentSpec, config: OperatorConfig) -> Finding | None:
    """The first problem with a variant's source or an override's adapter."""
    found = [
        *(
            find_host_problem(f"spec.variants[{index}].source", variant.source, config)
            for index, variant in enumerate(spec.variants)
        ),
        *(
            _first_problem(f"spec.overrides[{index}].adapters", _adapter_hosts(override), config)
            for index, override in enumerate(spec.overrides or ())
        ),
    ]
    return next((finding for finding in found if finding is not None), None)


def _adapter_hosts(override: Override) -> Iterator[tuple[str, HostPort | None]]:
    for adapter in override.adapters or ():
        yield f"{adapter.name}.url", read_host(adapter.url)


def _first_problem(
    where: str, hosts: Iterator[tuple[str, HostPort | None]], config: OperatorConfig
) -> Finding | None:
    allowed = config.allowed_source_hosts
    if not allowed:
        return None
    for field, host in hosts:
        if host is None or not is_allowed_host(host, allowed):
            shown = str(host) if host is not None else "what it names"
            return Finding(
                reason="SourceHostNotAllowed",
                message=f"{where}.{field}: {shown} is not among the allowed hosts {', '.join(allowed)}; use "
                "one of these, or let an administrator allow it (chart value allowedSourceHosts)",
            )
    return None


def _hosts_of(source: Source, config: OperatorConfig) -> Iterator[tuple[str, HostPort | None]]:
    if source.http is not None:
        yield "http.url", read_host(source.http.url)
    if source.hf is not None:
        yield "hf.endpoint", read_host(source.hf.endpoint or config.hugging_face_endpoint)
    if source.oci is not None:
        yield "oci.image", _registry(source.oci.image, "http" if source.oci.plain_http else "https")
    if source.s3 is not None:
        yield "s3.endpoint", _bucket(source.s3.endpoint, source.s3.region)


def _publish_hosts(publish: Publish) -> Iterator[tuple[str, HostPort | None]]:
    if publish.oci is not None:
        yield "oci.image", _registry(publish.oci.image, "http" if publish.oci.plain_http else "https")
    if publish.s3 is not None:
        yield "s3.endpoint", _bucket(publish.s3.endpoint, publish.s3.region)


def _registry(image: str, scheme: str) -> HostPort | None:
    registry = image.partition("/")[0].lower()
    # The Docker Hub's registry has another name than its images.
    return read_host(f"{scheme}://{'registry-1.docker.io' if registry == 'docker.io' else registry}")


def _bucket(endpoint: str | None, region: str) -> HostPort | None:
    return read_host(endpoint or f"https://s3.{region}.amazonaws.com")
