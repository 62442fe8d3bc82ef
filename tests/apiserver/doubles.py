# SPDX-License-Identifier: Apache-2.0
"""Doubles at the operator's outward ports, and a client that dies or fails when it is told to."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from slmops.adapters.errors import Conflict, KubeError, NotFound, Unavailable
from slmops.adapters.kube import KubeClient
from slmops.adapters.resources import Resource
from slmops.api.source import Source
from slmops.model.observed import MetricQuery, Preset, ProviderSettings, Resolved, Sample, Samples
from slmops.ports.metrics import ProviderError
from slmops.ports.sources import SourceError
from slmwire.manifest import Manifest, ManifestFile
from slmwire.reasons import Reason

PATIENCE_SECONDS: Final = 120.0


class ScriptedProvider:
    """Answers for one variant by preset and revision; what is not scripted is healthy, with many samples."""

    def __init__(self) -> None:
        self.samples: dict[tuple[Preset, str], Sample] = {}
        self.outage = ""
        self.silent = False
        """Whether nobody has anything to say: a wave that is judged neither passes nor fails meanwhile."""
        self.hangs = False
        self.asked = 0

    def script(self, preset: Preset, revision: str, value: float | None, *, samples: int = 500) -> None:
        """From now on `preset` has this value on the pods of `revision`."""
        events = value * samples if value is not None and preset is Preset.ERROR_RATE else 0.0
        self.samples[(preset, revision)] = Sample(value=value, samples=samples, events=events)

    async def read(self, query: MetricQuery, settings: ProviderSettings) -> Samples:
        """Implements MetricsProvider."""
        self.asked += 1
        if self.hangs:
            await asyncio.sleep(3600)
        if self.outage:
            raise ProviderError(self.outage)
        if self.silent:
            return {}
        healthy = 0.99 if query.preset in (Preset.EVALUATION_SCORE, Preset.FEEDBACK_SCORE) else 0.0
        assert query.preset is not None
        return {"int4": self.samples.get((query.preset, query.revision), Sample(value=healthy, samples=500))}


class ScriptedResolver:
    """One file per URL, with a hash of the URL; fails for the URLs it is told."""

    def __init__(self) -> None:
        self.failing: dict[str, str] = {}
        self.asked: list[str] = []

    async def resolve(self, source: Source, *, secret: Mapping[str, str] | None = None) -> Resolved:
        """Implements SourceResolver."""
        assert source.http is not None
        url = source.http.url
        self.asked.append(url)
        if url in self.failing:
            raise SourceError(Reason.SOURCE_UNAVAILABLE, self.failing[url], retry_after_seconds=0.5)
        digest = hashlib.sha256(url.encode()).hexdigest()
        file = ManifestFile(path="model.onnx", size=4096, sha256=digest, url=f"{url}.onnx")
        return Resolved(manifest=Manifest(files=(file,)), reference=url)

    async def read_file(
        self, source: Source, file: ManifestFile, *, secret: Mapping[str, str] | None = None
    ) -> bytes:
        """Implements SourceResolver."""
        raise SourceError(Reason.SOURCE_UNAVAILABLE, "nothing has content here")


class PatientClient(KubeClient):
    """A test's own hands: an API server that is too busy to answer is asked again."""

    async def _json(self, verb: str, resource: Resource, **options: Any) -> dict[str, Any]:
        asked_again = False
        end = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        while True:
            try:
                return await super()._json(verb, resource, **options)
            except Unavailable:
                if asyncio.get_running_loop().time() > end:
                    raise
            except (NotFound, Conflict):
                # The first request was carried out, and its answer got lost.
                if not asked_again or verb not in ("create", "delete"):
                    raise
                return {}
            asked_again = True
            await asyncio.sleep(0.5)


class Killed(BaseException):
    """The process is gone: nothing after this line ran."""


class CountingClient(KubeClient):
    """Counts writes, and dies before the one it is told to die before."""

    writes: list[str]
    die_before: int | None = None
    broken: Callable[[str, str], bool] = staticmethod(lambda verb, path: False)
    under_way: int = 0
    """Requests that have not been answered, those that come round by themselves left out."""

    async def _json(self, verb: str, resource: Resource, **options: Any) -> dict[str, Any]:
        by_itself = resource.plural in ("leases", "events")
        if not by_itself and verb not in ("get", "list"):
            if self.die_before is not None and len(self.writes) >= self.die_before:
                raise Killed
            path = str(options.get("path"))
            if self.broken(verb, path):
                raise KubeError(f"{verb} {path}: scripted failure", status=500)
            self.writes.append(f"{verb} {path}")
        self.under_way += not by_itself
        try:
            return await super()._json(verb, resource, **options)
        finally:
            self.under_way -= not by_itself
