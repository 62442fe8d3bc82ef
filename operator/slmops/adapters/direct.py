# SPDX-License-Identifier: Apache-2.0
"""Metrics provider without Prometheus: the operator scrapes the serving pods itself.

Of each side (a revision of a deployment) and device class at most `PODS_PER_CLASS` pods are looked at,
always the same ones as long as they are there. Looks are shared by all metrics that are read at about
the same time.
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Final

import aiohttp

from slmops.adapters.exposition import Exposition, ExpositionError, parse_exposition
from slmops.adapters.increases import Growth, Increases, latest_start
from slmops.adapters.samples import build_drift, build_latency, build_score, build_share, build_speed
from slmops.adapters.sources.addresses import AddressPolicy
from slmops.model.observed import MetricQuery, Preset, ProviderSettings, Sample, Samples
from slmops.ports.clock import Clock
from slmops.ports.metrics import ProviderError
from slmops.ports.sources import SourceError
from slmwire.paths import HTTP_PORT, PATH_METRICS
from slmwire.scheme import Scheme

PODS_PER_CLASS: Final = 30
PARALLEL_SCRAPES: Final = 64
POD_TIMEOUT_SECONDS: Final = 3.0
LOOK_TIMEOUT_SECONDS: Final = 4.0
FRESH_SECONDS: Final = 1.0
"""A look that is younger serves another metric as well."""
MAX_SIDES: Final = 128
SWEEP_SECONDS: Final = 600.0
_BODY_LIMIT_BYTES: Final = 1 << 20
_PRESETS: Final = frozenset(
    {
        Preset.ERROR_RATE,
        Preset.LATENCY_P95,
        Preset.TTFT_P95,
        Preset.TOKENS_PER_SECOND,
        Preset.EVALUATION_SCORE,
        Preset.FEEDBACK_SCORE,
        Preset.REFUSAL_RATE,
        Preset.DRIFT,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodTarget:
    """A serving pod that may be scraped."""

    name: str
    ip: str
    variant: str
    node: str = ""
    port: int = HTTP_PORT
    scheme: Scheme = "http"
    ready: bool = True
    created_at: float = 0.0
    """Seconds since the epoch, by the API server's clock."""

    @property
    def key(self) -> str:
        """Tells it from a later pod of its name."""
        return f"{self.name} {self.created_at:.0f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """An answer of a pod."""

    target: PodTarget
    seen: Exposition
    at: float
    """When it was asked for."""
    began_at: float
    """When its counters were zero."""


Targets = Callable[[str, str, str], Sequence[PodTarget]]
"""Pods of a namespace, deployment and revision."""
_SideKey = tuple[str, str, str]


@dataclass(slots=True)
class _Side:
    """What is remembered of one revision of a deployment."""

    increases: Increases = field(default_factory=Increases)
    scores: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """By variant (score, cases) of the pods that answered last."""
    drifts: dict[str, list[Mapping[str, tuple[float, float]]]] = field(default_factory=dict)
    """By variant `Exposition.drift` of the same pods."""
    answered: frozenset[str] = frozenset()
    """Variants of which a pod answered last."""
    error: str = ""
    """Why no pod answered; empty when one did or there is none."""
    looked_at: float = 0.0
    read_at: float = 0.0
    look: asyncio.Task[None] | None = None


class DirectProvider:
    """Implements `ports.metrics.MetricsProvider`; a read takes at most `LOOK_TIMEOUT_SECONDS`."""

    def __init__(
        self, targets: Targets, *, clock: Clock, may_scrape: Callable[[str], bool] | None = None
    ) -> None:
        self._targets = targets
        self._clock = clock
        self._may_scrape = may_scrape or is_pod_address
        self._sides: dict[_SideKey, _Side] = {}
        self._slots = asyncio.Semaphore(PARALLEL_SCRAPES)
        self._session: aiohttp.ClientSession | None = None
        self._swept_at = clock.now()

    async def close(self) -> None:
        """Give up what is under way and close all connections."""
        looks = [side.look for side in self._sides.values() if side.look is not None]
        self._drop(list(self._sides))
        if looks:
            await asyncio.wait(looks)
        if self._session is not None:
            await self._session.close()
            self._session = None

    def forget(self, namespace: str, deployment: str) -> None:
        """The deployment is gone."""
        self._drop(key for key in list(self._sides) if key[:2] == (namespace, deployment))

    async def read(self, query: MetricQuery, settings: ProviderSettings) -> Samples:
        """By variant. Raises ProviderError when there are pods and none answers."""
        if query.preset is None:
            raise ProviderError("analysis.provider Direct knows presets only: use Prometheus for a query")
        if query.preset not in _PRESETS:
            raise ValueError(f"{query.preset} is not measured: it is read off the pods")
        key = (query.namespace, query.deployment, query.revision)
        side = self._side(key)
        await self._look(key, side)
        if side.error:
            raise ProviderError(side.error)
        growth = side.increases.growth(query.since)
        found = {
            variant: _build_sample(
                query.preset,
                growth.get(variant, Growth()),
                scores=side.scores.get(variant, ()),
                drifts=side.drifts.get(variant, ()),
            )
            for variant in sorted(side.answered)
        }
        return {variant: sample for variant, sample in found.items() if sample is not None}

    # What is remembered

    def _side(self, key: _SideKey) -> _Side:
        now = self._clock.now()
        side = self._sides.pop(key, None) or _Side()
        # The one that was read last is the last one: the first is the first to go.
        self._sides[key] = side
        side.read_at = now
        if abs(now - self._swept_at) >= SWEEP_SECONDS:
            self._swept_at = now
            self._drop(
                k for k, s in list(self._sides.items())
                if abs(now - s.read_at) >= SWEEP_SECONDS and not self._targets(*k)
            )  # fmt: skip
        self._drop(list(self._sides)[: max(0, len(self._sides) - MAX_SIDES)])
        return side

    def _drop(self, keys: Iterable[_SideKey]) -> None:
        for key in keys:
            side = self._sides.pop(key, None)
            if side is not None and side.look is not None:
                side.look.cancel()

    # One look at all pods of a side

    async def _look(self, key: _SideKey, side: _Side) -> None:
        if side.look is None:
            if 0 <= self._clock.now() - side.looked_at < FRESH_SECONDS:
                return
            side.look = asyncio.create_task(self._scrape_side(key, side), name=f"scrape {'/'.join(key)}")
        look = side.look
        # Several metrics wait for one look; one that is given up must not end it for the others.
        await asyncio.wait({look})
        if look.cancelled():
            raise ProviderError("the pods were not asked: the deployment is gone or the operator stops")
        look.result()

    async def _scrape_side(self, key: _SideKey, side: _Side) -> None:
        try:
            side.looked_at = self._clock.now()
            targets = choose_targets(self._targets(*key))
            found, error = await self._scrape_all(targets)
            side.scores, side.drifts = {}, {}
            for look in found:
                seen = look.seen
                side.increases.observe(
                    look.target.key, seen, variant=look.target.variant, at=look.at, began_at=look.began_at
                )
                if seen.score is not None and seen.cases > 0:
                    side.scores.setdefault(look.target.variant, []).append((seen.score, seen.cases))
                if seen.drift:
                    side.drifts.setdefault(look.target.variant, []).append(seen.drift)
            side.increases.forget_gone(target.key for target in targets)
            side.answered = frozenset(look.target.variant for look in found)
            side.error = "" if found or not targets else f"none of {len(targets)} pods answered: {error}"
        finally:
            side.look = None

    async def _scrape_all(self, targets: Sequence[PodTarget]) -> tuple[list[_Look], str]:
        """What those say that answered in time, and the first error."""
        tasks = {asyncio.create_task(self._scrape(target)): target for target in targets}
        found: list[_Look] = []
        errors: list[str] = []
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=LOOK_TIMEOUT_SECONDS)
        finally:
            for task in tasks:
                task.cancel()
        for task, target in tasks.items():
            if not task.done() or task.cancelled():
                errors.append(f"{target.name}: no answer within {LOOK_TIMEOUT_SECONDS:g} s")
                continue
            error = task.exception()
            if error is None:
                found.append(task.result())
            elif isinstance(error, ProviderError):
                errors.append(str(error))
            else:
                raise error
        return found, errors[0] if errors else ""

    async def _scrape(self, target: PodTarget) -> _Look:
        """One pod. Raises ProviderError."""
        if not self._may_scrape(target.ip):
            raise ProviderError(f"{target.name}: {target.ip} is no address of a pod")
        host = f"[{target.ip}]" if ":" in target.ip else target.ip
        url = f"{target.scheme}://{host}:{target.port}{PATH_METRICS}"
        try:
            async with self._slots, self._open().get(url, allow_redirects=False) as response:
                at = self._clock.now()
                if response.status != 200:
                    raise ProviderError(f"{target.name}: HTTP {response.status} at {PATH_METRICS}")
                text = bytearray()
                async for chunk in response.content.iter_any():
                    text += chunk
                    if len(text) > _BODY_LIMIT_BYTES:
                        raise ProviderError(f"{target.name}: more than 1 MiB at {PATH_METRICS}")
                node_time = _seconds_of(response.headers.get("Date"))
        except TimeoutError as error:
            raise ProviderError(f"{target.name}: no answer within {POD_TIMEOUT_SECONDS:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ProviderError(f"{target.name}: {type(error).__name__} {error}"[:200]) from error
        try:
            seen = parse_exposition(text.decode(errors="replace"))
        except ExpositionError as error:
            raise ProviderError(f"{target.name}: {error}") from error
        began_at = latest_start(
            created_at=target.created_at,
            process_started_at=seen.process_started_at,
            node_time=node_time,
            now=at,
        )
        return _Look(target=target, seen=seen, at=at, began_at=began_at)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # A pod is asked by its address, which no certificate names, and the operator reads none of
                # the Secrets. So who answers is not verified, over HTTPS as over HTTP: it is the address
                # that the pod's node reported. Nothing secret is sent and no prompt is in the answer.
                connector=aiohttp.TCPConnector(limit=PARALLEL_SCRAPES, ssl=False),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=POD_TIMEOUT_SECONDS),
                headers={
                    "User-Agent": "slmops",
                    "Accept": "text/plain;version=0.0.4",
                    "Accept-Encoding": "identity",
                },
                auto_decompress=False,
            )
        return self._session


def choose_targets(targets: Iterable[PodTarget], *, per_class: int = PODS_PER_CLASS) -> tuple[PodTarget, ...]:
    """At most `per_class` pods of each variant: those that are ready first, then by a hash of the node."""
    by_variant: dict[str, list[PodTarget]] = {}
    for target in targets:
        by_variant.setdefault(target.variant, []).append(target)
    return tuple(
        target
        for variant in sorted(by_variant)
        for target in sorted(by_variant[variant], key=_rank)[:per_class]
    )


def _rank(target: PodTarget) -> tuple[bool, bytes, str]:
    # By node: a pod that is made anew keeps its node's place.
    digest = hashlib.sha256((target.node or target.name).encode()).digest()
    return not target.ready, digest, target.name


def is_pod_address(text: str) -> bool:
    """Whether an address can be a pod's: a node reports it, and a stolen one must not choose our target."""
    try:
        AddressPolicy().check_address(text, host=text)
    except (SourceError, ValueError):
        return False
    return True


def _build_sample(
    preset: Preset,
    growth: Growth,
    *,
    scores: Sequence[tuple[float, float]],
    drifts: Sequence[Mapping[str, tuple[float, float]]],
) -> Sample | None:
    match preset:
        case Preset.ERROR_RATE:
            return build_share(requests=growth.requests, errors=growth.errors)
        case Preset.LATENCY_P95:
            return build_latency(growth.latency)
        case Preset.TTFT_P95:
            return build_latency(growth.first_token)
        case Preset.TOKENS_PER_SECOND:
            return build_speed(
                tokens=growth.tokens,
                seconds=growth.seconds,
                requests=max(growth.latency.values(), default=0.0),
            )
        case Preset.FEEDBACK_SCORE:
            return build_score(weighted=growth.judged_sum, cases=growth.judged_count)
        case Preset.REFUSAL_RATE:
            return build_share(requests=growth.checked, errors=growth.refused)
        case Preset.DRIFT:
            return build_drift(_add_drifts(drifts))
        case _:
            cases = sum(count for _, count in scores)
            return build_score(weighted=sum(score * count for score, count in scores), cases=cases)


def _add_drifts(drifts: Iterable[Mapping[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """By signal: sum of index times samples, samples."""
    sums: dict[str, tuple[float, float]] = {}
    for drift in drifts:
        for signal, (index, samples) in drift.items():
            weighted, total = sums.get(signal, (0.0, 0.0))
            sums[signal] = (weighted + index * samples, total + samples)
    return sums


def _seconds_of(date: str | None) -> float | None:
    if date is None:
        return None
    try:
        return parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
