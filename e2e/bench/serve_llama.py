# SPDX-License-Identifier: Apache-2.0
"""`python -m e2e.bench.serve_llama MODEL.gguf`: llama.cpp's own server, as the package embeds it.

Settings are the server's own but for slots, threads and their context: each slot gets as much as
ours has. It ends with its standard input.
"""

import argparse
import sys
from collections.abc import Sequence

import xllamacpp


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until the input ends."""
    parser = argparse.ArgumentParser(prog="python -m e2e.bench.serve_llama", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--context", type=int, required=True, help="tokens per slot")
    given = parser.parse_args(argv)
    params = xllamacpp.CommonParams()
    params.model.path = given.model
    params.n_parallel = given.slots
    params.n_ctx = given.context * given.slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = given.threads
    params.hostnames, params.port = ["127.0.0.1"], given.port
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
