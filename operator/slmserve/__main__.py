# SPDX-License-Identifier: Apache-2.0
"""`python -m slmserve`: serve one model directory; `python -m slmserve choose`: see choose.py."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Final

import uvicorn
import uvloop

from slmserve import choose
from slmserve.access import KeyRing
from slmserve.app import build_app
from slmserve.config import ConfigError, ServerConfig, parse_config
from slmserve.errors import StartError
from slmserve.journal import (
    describe_exception,
    log_loop_failure,
    log_uncaught,
    setup_logging,
    write_termination,
)
from slmserve.protocol import BoundedProtocol
from slmserve.sandbox import Confinement, confine
from slmserve.service import Service
from slmserve.tls import TlsIdentity
from slmwire.reasons import Reason, Termination

_log = logging.getLogger("slmserve")
_SWITCH_SECONDS: Final = 0.0005
"""The engine's thread gets the interpreter back this soon while the event loop writes answers."""
_ROTATION_SECONDS: Final = 2.0
"""A certificate that was replaced serves new connections after so long at most."""


class _Server(uvicorn.Server):
    """Leaves signals to us: a drain has to begin before the sockets close."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(config: ServerConfig) -> socket.socket:
    host, port = config.host, config.port
    try:
        if not host and socket.has_dualstack_ipv6():
            with contextlib.suppress(OSError):  # IPv6 may be switched off all the same
                return socket.create_server(
                    ("", port), family=socket.AF_INET6, backlog=512, dualstack_ipv6=True
                )
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        message = f"cannot listen on {host or 'any address'}, port {port}: {error.strerror}"
        raise StartError(Reason.INTERNAL_ERROR, message) from error


async def _serve(config: ServerConfig, listener: socket.socket, confinement: Confinement) -> None:
    """Serve until told to end; raises StartError when the model cannot be served."""
    service = Service(config)
    service.metrics.record_confinement(confinement)
    keys = None if config.api_keys_file is None else KeyRing(config.api_keys_file)
    identity = None if config.tls is None else TlsIdentity(config.tls)
    server = _Server(
        uvicorn.Config(
            build_app(service, keys),
            ssl_context_factory=None if identity is None else lambda _, __: identity.context,
            log_config=None,
            access_log=False,
            lifespan="off",
            loop="none",
            http=BoundedProtocol,
            ws="none",
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=2,
        )
    )
    # Probes are answered from the first moment, long before a large model is loaded.
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    fields = {
        "port": listener.getsockname()[1],
        "model": config.identity.model,
        "tls": identity is not None,
        "keys": keys is not None,
    }
    _log.info("listening", extra={"fields": fields})
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_loop_failure)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    starting = asyncio.create_task(service.start_up())
    told = asyncio.create_task(ending.wait())
    watching = asyncio.create_task(_watch(identity))
    try:
        await asyncio.wait({starting, told, serving}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
        await asyncio.wait({told, serving}, return_when=asyncio.FIRST_COMPLETED)
        await service.drain()
        if not starting.done():
            # A model is being loaded on a thread that nothing can interrupt; do not wait for it.
            logging.shutdown()
            os._exit(0)
    finally:
        server.should_exit = True
        for task in (starting, told, watching):
            task.cancel()
        await asyncio.wait({serving})


async def _watch(identity: TlsIdentity | None) -> None:
    while identity is not None:
        await asyncio.sleep(_ROTATION_SECONDS)
        identity.refresh()


def _terminate(config: ServerConfig, error: StartError) -> None:
    """Tell the kubelet, and through it the operator, why the start failed."""
    text = Termination(reason=error.reason, message=str(error), digest=config.model_digest).to_json()
    write_termination(config.termination_log, text)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 after a drain, 1 when the model cannot be served, 2 for bad settings."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["choose"]:
        return choose.main(arguments[1:])
    setup_logging()
    # Its warnings are about malformed requests: whoever sends them would fill the log.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    try:
        config = parse_config(arguments, os.environ)
    except ConfigError as error:
        _log.error("%s", error)
        return 2
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        listener = _listen(config)
        log_uncaught()
        # Before there is an event loop: it would set up io_uring, which passes no filter.
        confinement = confine(config.sandbox)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config, listener, confinement))
    except StartError as error:
        _log.error("cannot serve: %s", error, extra={"fields": {"reason": error.reason}})
        _terminate(config, error)
        return 1
    except Exception as error:
        failure = StartError(Reason.INTERNAL_ERROR, describe_exception(error))
        _log.error("cannot serve: %s", failure, extra={"fields": {"reason": failure.reason}})
        _terminate(config, failure)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
