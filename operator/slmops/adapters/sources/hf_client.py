# SPDX-License-Identifier: Apache-2.0
"""huggingface_hub, held to our bounds: addresses, time, answer size, no telemetry, no stray token."""

import os
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from slmops.adapters.sources.addresses import AddressPolicy
from slmops.adapters.sources.failures import build_status_error
from slmops.ports.sources import SourceError
from slmwire.reasons import Reason

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub.hf_api import ModelInfo

TIMEOUT_SECONDS: Final = 20.0
MAX_ANSWER_BYTES: Final = 16 << 20

# huggingface_hub reads these when it is imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
os.environ.setdefault("HF_HUB_DISABLE_UPDATE_CHECK", "1")

_policy: ContextVar[AddressPolicy] = ContextVar("address_policy")


def read_model_info(
    repo: str,
    revision: str,
    *,
    endpoint: str,
    host: str,
    token: str | None,
    policy: AddressPolicy,
    where: str,
) -> "ModelInfo":
    """Files and commit of a revision, by huggingface_hub. Blocks; raises SourceError."""
    _policy.set(policy)
    # Imported when needed: it weighs more than the rest of the operator.
    import httpx2
    from huggingface_hub import HfApi, set_client_factory
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    global _factory_is_set
    if not _factory_is_set:
        set_client_factory(_build_client)
        _factory_is_set = True
    has_token = bool(token)
    api = HfApi(endpoint=endpoint, token=token or False, library_name="slmops")
    try:
        policy.check_literal(host)
        return api.model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS)
    except GatedRepoError as error:
        raise SourceError(
            Reason.ACCESS_DENIED,
            f"{where}: the repository is gated; accept its terms and name a Secret with your token",
            permanent=has_token,
        ) from error
    except RevisionNotFoundError as error:
        raise SourceError(
            Reason.SOURCE_UNAVAILABLE, f"{where}: there is no such revision", permanent=True
        ) from error
    except RepositoryNotFoundError as error:
        cure = "the token gives no access" if has_token else "if it is private, name a Secret in secretRef"
        raise SourceError(
            Reason.ACCESS_DENIED, f"{where}: there is no such repository, or {cure}", permanent=True
        ) from error
    except HfHubHTTPError as error:
        response = error.response
        raise build_status_error(
            response.status_code,
            where=where,
            has_token=has_token,
            retry_after=response.headers.get("Retry-After"),
        ) from error
    except HFValidationError as error:
        raise SourceError(Reason.UNFIT, f"{where}: {error}", permanent=True) from error
    except httpx2.TimeoutException as error:
        raise SourceError(Reason.SOURCE_UNAVAILABLE, f"{where} did not answer in time") from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise SourceError(Reason.SOURCE_UNAVAILABLE, f"{where}: {error}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise SourceError(
            Reason.SOURCE_UNAVAILABLE,
            f"{where}: the answer is not that of a Hugging Face endpoint ({type(error).__name__})",
        ) from error


_factory_is_set = False


def _build_client() -> "httpx2.Client":
    import httpx2

    return httpx2.Client(
        follow_redirects=True,
        max_redirects=5,
        timeout=TIMEOUT_SECONDS,
        headers={"Accept-Encoding": "identity"},
        event_hooks={"request": [_check_request], "response": [_bound_response]},
    )


def _check_request(request: "httpx2.Request") -> None:
    """Runs before every request, those that follow a redirect included."""
    if request.url.scheme not in ("http", "https"):
        raise SourceError(
            Reason.SOURCE_UNAVAILABLE, f"a redirect to {request.url.scheme} is not followed", permanent=True
        )
    policy = _policy.get(AddressPolicy())
    policy.check_target(request.url.host, request.url.port or (443 if request.url.scheme == "https" else 80))
    if _is_proxied(request):
        policy.check_literal(request.url.host)
    else:
        policy.check_host(request.url.host)


def _check_peer(response: "httpx2.Response") -> None:
    """The client looked the name up once more to connect: it may lead elsewhere by now (DNS rebinding)."""
    stream = response.extensions.get("network_stream")
    if stream is None or _is_proxied(response.request):
        return
    address = stream.get_extra_info("server_addr")
    if address:
        _policy.get(AddressPolicy()).check_address(str(address[0]), host=response.request.url.host)


def _is_proxied(request: "httpx2.Request") -> bool:
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    return bool(proxies.get(request.url.scheme) or proxies.get("all")) and not proxy_bypass(request.url.host)


def _bound_response(response: "httpx2.Response") -> None:
    """Runs before the body is read."""
    import httpx2

    _check_peer(response)
    # The bound below is on what comes over the wire: a megabyte of gzip unfolds to a gigabyte.
    if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise SourceError(
            Reason.SOURCE_UNAVAILABLE,
            f"{response.url.host} sends compressed answers though told not to; turn that off for the API",
            permanent=True,
        )

    inner = response.stream

    class Bounded(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            total = 0
            if not isinstance(inner, httpx2.SyncByteStream):
                raise TypeError("the hub's client is synchronous")
            for chunk in inner:
                total += len(chunk)
                if total > MAX_ANSWER_BYTES:
                    raise SourceError(
                        Reason.UNFIT,
                        f"{response.url.host} answers with more than {MAX_ANSWER_BYTES} bytes",
                        permanent=True,
                    )
                yield chunk

        def close(self) -> None:
            if isinstance(inner, httpx2.SyncByteStream):
                inner.close()

    response.stream = Bounded()
