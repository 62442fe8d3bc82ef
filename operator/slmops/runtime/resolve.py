# SPDX-License-Identifier: Apache-2.0
"""Resolves sources in the background and keeps the outcomes until a revision stores them."""

import asyncio
import base64
import binascii
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from slmops.adapters.errors import Forbidden, KubeError, NotFound
from slmops.adapters.kube import KubeClient
from slmops.adapters.resources import SECRETS
from slmops.adapters.signatures import SignatureError, verify_signature
from slmops.api.signature import Signature
from slmops.api.source import Source
from slmops.model.observed import Resolved, ResolveFailure, SignatureCheck
from slmops.model.plan import ResolveRequest
from slmops.model.source_secret import secret_of
from slmops.ports.clock import Clock
from slmops.ports.sources import SourceError, SourceResolver
from slmops.runtime.backoff import Backoff
from slmwire.manifest import Manifest
from slmwire.reasons import Reason

RESOLVE_LIMIT_SECONDS: Final = 120.0
READ_THROUGH_LIMIT_SECONDS: Final = 3600.0
"""For sources whose archives are read through once."""
PERMANENT_RETRY_SECONDS: Final = 600.0
_log = logging.getLogger(__name__)


class Resolutions:
    """Outcomes by source hash for one deployment; secrets are read live, and never kept."""

    def __init__(
        self,
        resolver: SourceResolver,
        kube: KubeClient,
        *,
        namespace: str,
        clock: Clock,
        slots: asyncio.Semaphore,
        long_slots: asyncio.Semaphore,
        on_outcome: Callable[[], None],
    ) -> None:
        self._resolver = resolver
        self._kube = kube
        self._namespace = namespace
        self._clock = clock
        self._slots, self._long_slots = slots, long_slots
        self._on_outcome = on_outcome
        self._running: dict[str, asyncio.Task[None]] = {}
        self._backoffs: dict[str, Backoff] = {}
        self._outcomes: dict[str, Resolved | ResolveFailure] = {}

    @property
    def outcomes(self) -> Mapping[str, Resolved | ResolveFailure]:
        """What is known, by source hash."""
        return self._outcomes

    def request(self, requests: Iterable[ResolveRequest]) -> None:
        """Start what is due and not under way."""
        for request in requests:
            if request.source_hash not in self._running:
                task = asyncio.create_task(self._resolve(request))
                self._running[request.source_hash] = task

    def keep_only(self, source_hashes: Iterable[str]) -> None:
        """Forget outcomes of sources that the spec no longer names."""
        wanted = set(source_hashes)
        for known in [h for h in self._outcomes if h not in wanted]:
            del self._outcomes[known]
            self._backoffs.pop(known, None)
        for known in [h for h in self._running if h not in wanted]:
            self._running.pop(known).cancel()

    def forget_failures(self) -> None:
        """Let what failed be tried again at once: somebody says that the cause is gone."""
        for known in [h for h, outcome in self._outcomes.items() if isinstance(outcome, ResolveFailure)]:
            del self._outcomes[known]
            self._backoffs.pop(known, None)

    def stop(self) -> None:
        """Give up everything under way."""
        for task in self._running.values():
            task.cancel()
        self._running.clear()

    async def _resolve(self, request: ResolveRequest) -> None:
        identity = request.source_hash
        try:
            # Images that are read through for an hour must not keep a quick question waiting.
            async with self._long_slots if _reads_through(request) else self._slots:
                self._outcomes[identity] = await self._attempt(request)
        finally:
            if self._running.get(identity) is asyncio.current_task():
                del self._running[identity]
        self._on_outcome()

    async def _attempt(self, request: ResolveRequest) -> Resolved | ResolveFailure:
        retry_after: float | None = None
        permanent = False
        limit = READ_THROUGH_LIMIT_SECONDS if _reads_through(request) else RESOLVE_LIMIT_SECONDS
        try:
            async with asyncio.timeout(limit):
                resolved = request.known
                if resolved is None:
                    secret = await self._read_secret(request.source)
                    resolved = await self._resolver.resolve(request.source, secret=secret)
                resolved = await self._check_signature(request, resolved)
            self._backoffs.pop(request.source_hash, None)
            return resolved
        except SourceError as error:
            reason, message = Reason(error.reason), str(error)
            retry_after, permanent = error.retry_after_seconds, error.permanent
        except TimeoutError:
            reason = Reason.SOURCE_UNAVAILABLE
            message = f"the source gave no answer within {limit:g} s"
        except KubeError as error:
            reason, message = Reason.ACCESS_DENIED, str(error)
        except Exception as error:
            _log.exception("resolving a source failed")
            reason, message = Reason.INTERNAL_ERROR, f"{type(error).__name__} while resolving the source"
        backoff = self._backoffs.setdefault(
            request.source_hash, Backoff(first_seconds=5.0, limit_seconds=300.0)
        )
        delay = max(backoff.fail(), retry_after or 0.0, PERMANENT_RETRY_SECONDS if permanent else 0.0)
        return ResolveFailure(
            reason=reason,
            message=message,
            retry_at=self._clock.now() + delay,
        )

    async def _check_signature(self, request: ResolveRequest, resolved: Resolved) -> Resolved:
        """With the outcome of the check that spec asks for. SourceError if it is to be made again later."""
        wanted = request.signature
        if wanted is None:
            return resolved
        try:
            texts = wanted.inline or [await self._read_signature(request.source, wanted, resolved)]
            check = await asyncio.to_thread(_verify_any, texts, resolved.manifest, wanted)
        except SignatureError as error:
            check = SignatureCheck(text="", error=str(error))
        if check.error and wanted.policy == "Require" and request.known is None:
            # The source may have a better one later.
            raise SourceError(Reason.SIGNATURE_INVALID, check.error, permanent=True)
        return replace(resolved, signature=check)

    async def _read_signature(self, source: Source, wanted: Signature, resolved: Resolved) -> str:
        file = next((f for f in resolved.manifest.files if f.path == wanted.file), None)
        if file is None:
            raise SignatureError(
                f"there is no {wanted.file} among the files; publish the signature beside them, or name it "
                "in spec.model.signature.file"
            )
        kept = resolved.signature.text if resolved.signature is not None else ""
        if kept and hashlib.sha256(kept.encode()).hexdigest() == file.sha256:
            return kept
        # Kept with the revision, so that going back to it needs no network.
        try:
            secret = await self._read_secret(source)
            return (await self._resolver.read_file(source, file, secret=secret)).decode()
        except UnicodeDecodeError as error:
            raise SignatureError(f"{wanted.file} is not text") from error
        except SourceError as error:
            if error.permanent and error.reason is Reason.UNFIT:
                raise SignatureError(f"{error}; give the signature in spec.model.signature.inline") from error
            raise

    async def _read_secret(self, source: Source) -> Mapping[str, str]:
        """What the Secret of the source holds, by the names of paths.SOURCE_DIR; empty without one."""
        wanted = secret_of(source)
        if wanted is None:
            return {}
        what = f"Secret {wanted.name}"
        try:
            secret = await self._kube.get(SECRETS, namespace=self._namespace, name=wanted.name)
        except NotFound as error:
            raise SourceError(
                Reason.ACCESS_DENIED, f"{what} does not exist in namespace {self._namespace}; create it"
            ) from error
        except Forbidden as error:
            raise SourceError(
                Reason.ACCESS_DENIED,
                f"the operator may not read {what}; allow it (chart value rbac.readSecrets)",
            ) from error
        data = secret.get("data") or {}
        result = {}
        for key, name in wanted.items.items():
            if key not in data:
                if key in wanted.optional:
                    continue
                raise SourceError(Reason.ACCESS_DENIED, f"{what} has no key {key}")
            try:
                result[name] = base64.b64decode(data[key], validate=True).decode().strip("\r\n")
            except (binascii.Error, UnicodeDecodeError) as error:
                raise SourceError(Reason.ACCESS_DENIED, f"{what}: key {key} holds no text") from error
        return result


def _verify_any(texts: Sequence[str], manifest: Manifest, wanted: Signature) -> SignatureCheck:
    """The check with the signature that holds, else with the first; blocks."""
    errors = []
    for text in texts:
        try:
            key = verify_signature(text, manifest=manifest, file=wanted.file, public_keys=wanted.public_keys)
        except SignatureError as error:
            errors.append(str(error))
        else:
            return SignatureCheck(text=text, key=key)
    more = f" (nor does any of the other {len(texts) - 1} signatures hold)" if len(texts) > 1 else ""
    return SignatureCheck(text=texts[0], error=errors[0] + more)


def _reads_through(request: ResolveRequest) -> bool:
    return request.source.oci is not None and request.known is None
