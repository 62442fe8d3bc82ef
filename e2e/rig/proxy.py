# SPDX-License-Identifier: Apache-2.0
"""Reverse proxy with faults on demand: before the registry what the file server is to model files.

Passes GET and HEAD on to one upstream and answers with what that says; the fault file is the file
server's, and a fault counts for the paths below its prefix.
"""

import argparse
import http.client
import time
from http import HTTPStatus
from pathlib import Path
from typing import ClassVar, Final

from e2e.rig.fileserver import Handler, Server

_HOP_BY_HOP: Final = frozenset({"connection", "keep-alive", "transfer-encoding", "host", "te", "upgrade"})
_TIMEOUT_SECONDS: Final = 30


class ProxyHandler(Handler):
    """Passes one request on."""

    upstream: ClassVar[str]

    def _answer(self, *, body: bool) -> None:
        fault = self._fault()
        time.sleep(fault.delay_seconds)
        if self._refused_by(fault):
            return
        connection = http.client.HTTPConnection(self.upstream, timeout=_TIMEOUT_SECONDS)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
            connection.request("GET" if body else "HEAD", self.path, headers=headers)
            answer = connection.getresponse()
            length = answer.headers.get("Content-Length")
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in _HOP_BY_HOP | {"date", "server"}:
                    self.send_header(name, value)
            if length is None:
                self.send_header("Connection", "close")
                self.close_connection = True
            self.end_headers()
            if body:
                content = answer.read() if length is None else b""
                if length is None:
                    self.wfile.write(content)
                else:
                    self._pump(answer.read, length=int(length), fault=fault)
        except (OSError, http.client.HTTPException) as error:
            self.log_error("upstream: %r", error)
            self._refuse(HTTPStatus.BAD_GATEWAY)
            self.close_connection = True
        finally:
            connection.close()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="python -m e2e.rig.proxy", description=__doc__)
    parser.add_argument("--upstream", required=True, help="host:port, plain HTTP")
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--faults", type=Path, required=True)
    options = parser.parse_args()
    fields = {"root": Path("/nonexistent"), "faults_file": options.faults, "upstream": options.upstream}
    Server((options.address, options.port), type("BoundProxy", (ProxyHandler,), fields)).serve_forever()


if __name__ == "__main__":
    main()
