# SPDX-License-Identifier: Apache-2.0
"""What it means when a pod that is asked through the API server's proxy does not answer as it should."""

import json
from typing import Any

from slmcli.cluster import PodAddress
from slmcli.errors import CliError, ForbiddenError, NotFoundError, RefusedError, UnreachableError
from slmcli.safe import clean


def describe_refusal(address: PodAddress, *, verb: str, status: int, text: bytes) -> CliError:
    """The error behind an HTTP status of at least 300. `verb` is that of the permission on `pods/proxy`.

    The API server speaks in objects of kind Status, the inference server in `{"error": ...}`.
    """
    body = _object(text)
    said = body.get("error")
    if isinstance(said, dict):
        return _of_server(address, status, said)
    words = clean(str(body.get("message") or text[:200].decode(errors="replace"))) or f"status {status}"
    where = f"{address.namespace}/{address.pod}"
    match status:
        case 401:
            return ForbiddenError(
                f"the API server does not know who you are ({words}); log in again or choose another "
                "--context"
            )
        case 403:
            return ForbiddenError(
                f"{words}; this needs {verb} of pods/proxy in namespace {address.namespace}, which the "
                "role edit has: ask an administrator, docs/cli.md has a smaller role"
            )
        case 404 if body.get("kind") == "Status":
            return NotFoundError(f"{words}; the pod went away meanwhile, run the command again")
        case 502 | 503 | 504 | 500 if body.get("kind") == "Status" or "reach" in words or "dial" in words:
            return UnreachableError(
                f"the API server cannot reach pod {where}: {words}; is its node online, and do "
                f"NetworkPolicies let the API server in on port {address.port}?"
            )
        case _:
            return CliError(f"pod {where} answered {status}: {words}")


def _of_server(address: PodAddress, status: int, said: dict[str, Any]) -> CliError:
    words, code = clean(str(said.get("message") or "")), said.get("code")
    if status == 401:
        return ForbiddenError(f"{words or 'the server wants a key'}; give a file with one by --key-file")
    if code == "context_length_exceeded":
        return RefusedError(f"{words}; begin anew (/reset) or ask less")
    if status in (429, 503):
        return UnreachableError(f"pod {address.pod}: {words}; try again")
    return RefusedError(f"the server refuses that: {words or status}")


def _object(text: bytes) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}
