# SPDX-License-Identifier: Apache-2.0
"""Requests as one account, each just as it is: `kubectl patch` reads an object before it patches it."""

import base64
import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

MERGE_PATCH: Final = "application/merge-patch+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Requests to the API server as one account."""

    server: str
    token: str
    tls: ssl.SSLContext

    def ask(
        self, method: str, path: str, body: Any = None, *, form: str = "application/json"
    ) -> tuple[int, str]:
        """Status and words of the answer."""
        request = urllib.request.Request(
            f"{self.server}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": form},
        )
        try:
            with urllib.request.urlopen(request, context=self.tls, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


def token_of(kubeconfig: Path) -> str:
    """The token that a kubeconfig holds."""
    return str(yaml.safe_load(kubeconfig.read_text())["users"][0]["user"]["token"])


def account_of(kubeconfig: Path, token: str) -> Account:
    """The account of a token, on the server that a kubeconfig names."""
    config = yaml.safe_load(kubeconfig.read_text())
    cluster = config["clusters"][0]["cluster"]
    tls = ssl.create_default_context()
    if "certificate-authority-data" in cluster:
        tls.load_verify_locations(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    else:
        tls.load_verify_locations(cafile=cluster["certificate-authority"])
    return Account(server=cluster["server"], token=token, tls=tls)
