# SPDX-License-Identifier: Apache-2.0
"""`try`: serve the model of a manifest on this machine; asks no cluster."""

import argparse
import json
import os
import shlex
import tempfile
from pathlib import Path

from slmcli.errors import Exit, UsageError
from slmcli.safe import clean
from slmcli.session import Session
from slmcli.trial.plan import Plan, observe_machine, plan_trial, read_wanted
from slmcli.trial.processes import (
    Folders,
    Started,
    check_runtime,
    default_store,
    ended_by_signals,
    fetch,
    serve,
)
from slmcli.trial.sources import resolve_source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "-f", "--filename", required=True, metavar="FILE",
        help="YAML with the SLMDeployment, and any DeviceProfiles that are to count",
    )  # fmt: skip
    parser.add_argument(
        "--variant", metavar="V", help="serve this one (default: what a node like this machine would take)"
    )
    parser.add_argument(
        "--port", type=int, default=8080, help="port on 127.0.0.1; 0 takes a free one (default: 8080)"
    )
    parser.add_argument(
        "--store", metavar="DIR", help="where models are kept (default: slmops/store below $XDG_DATA_HOME)"
    )


def run(arguments: argparse.Namespace, session: Session) -> Exit:
    """Run it; `Exit.OK` after Ctrl-C."""
    if not 0 <= arguments.port <= 65535:
        raise UsageError(f"--port {arguments.port}: give a number from 0 to 65535")
    wanted = read_wanted(Path(arguments.filename))
    check_runtime()
    plan = plan_trial(wanted, observe_machine(), variant=arguments.variant, resolve=resolve_source)
    for note in plan.notes:
        session.say(clean(note))
    store = Path(arguments.store) if arguments.store else default_store(os.environ)
    ready = False
    with ended_by_signals(), tempfile.TemporaryDirectory(prefix="slm-try-") as work:
        folders = Folders(store=store.expanduser().absolute(), work=Path(work))
        session.say(f"{plan.name}: variant {plan.variant}, store {folders.store}")
        try:
            model_dir = fetch(plan, folders, session)
            with serve(plan, model_dir, folders, port=arguments.port) as server:
                session.terminal.write(describe(plan, server.wait_ready(session)))
                ready = True
                server.wait_end()
        except KeyboardInterrupt:
            if not ready:
                raise
            session.say("ended; the model stays in the store")
    return Exit.OK


def describe(plan: Plan, started: Started) -> str:
    """What a person needs to use it."""
    golden = "no golden set was run"
    if started.score is not None:
        golden = f"golden set: {started.score:.0%} of {started.samples} answers as expected"
    body = {"model": plan.model, "messages": [{"role": "user", "content": "Hello"}]}
    ask = ["curl", f"{started.url}/chat/completions", "-H", "Content-Type: application/json"]
    return (
        f"{plan.model} {plan.version} serves at {started.url} ({started.engine}; {golden})\n"
        f"  {shlex.join([*ask, '-d', json.dumps(body)])}\n"
        "Ctrl-C ends it\n"
    )
