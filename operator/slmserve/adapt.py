# SPDX-License-Identifier: Apache-2.0
"""`python -m slmserve.adapt prepare` and `... judge`: the two ends of a training on the node.

`prepare` turns the examples of a site into token ids and holds some back; `judge` says whether what was
trained on them is better than what serves now. Neither opens a connection, and no text of an example is in
what they log or report.
"""

import argparse
import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from slmserve.adapt_judge import judge
from slmserve.adapt_prepare import prepare
from slmserve.config import ConfigError, ServerConfig, parse_config
from slmserve.errors import StartError
from slmserve.golden import GoldenError
from slmserve.journal import (
    describe_exception,
    log_loop_failure,
    log_uncaught,
    setup_logging,
    write_termination,
)
from slmserve.sandbox import confine
from slmwire.jobs import (
    HELD_OUT_DIR,
    JOB_FILE,
    WORK_DIR,
    AdapterReport,
    TrainOrder,
    TrainOutcome,
    parse_order,
    to_message,
)
from slmwire.paths import EXAMPLES_DIR, TERMINATION_LOG
from slmwire.reasons import Reason, Termination

_log = logging.getLogger("slmserve.adapt")
DEFAULT_DEADLINE_SECONDS: Final = 1800.0
_ENGINE: Final = "onnxruntime"


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="slmserve.adapt",
        allow_abbrev=False,
        description="Prepare or judge the training of an adapter on this node. Other options are those of "
        "slmserve (--model-dir, --threads, --slots, --context-length).",
    )
    parser.add_argument("task", choices=("prepare", "judge"))
    parser.add_argument("--examples", type=Path, default=Path(EXAMPLES_DIR), help="default %(default)s")
    parser.add_argument("--work", type=Path, default=Path(WORK_DIR), help="default %(default)s")
    parser.add_argument("--held-out", type=Path, default=Path(HELD_OUT_DIR), help="default %(default)s")
    parser.add_argument("--job", type=Path, default=Path(JOB_FILE), help="default %(default)s")
    parser.add_argument("--deadline-seconds", type=float, default=DEFAULT_DEADLINE_SECONDS)
    parser.add_argument("--termination-log", type=Path, default=Path(TERMINATION_LOG))
    return parser.parse_known_args(argv)


def _settings(options: argparse.Namespace, rest: Sequence[str]) -> tuple[TrainOrder, ServerConfig]:
    """Raises ConfigError."""
    try:
        order = parse_order(options.job.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--job {options.job} cannot be used: {error}") from error
    if options.deadline_seconds <= 0:
        raise ConfigError(f"--deadline-seconds is {options.deadline_seconds}; it must be above 0")
    config = parse_config(rest, os.environ)
    # Nothing is served. Adapters of this kind have one engine.
    return order, replace(config, engine=_ENGINE, evaluate=False, model_digest="", examples=None)


def _judge(options: argparse.Namespace, order: TrainOrder, config: ServerConfig) -> AdapterReport:
    task = judge(
        config,
        order,
        work=options.work,
        held_out_dir=options.held_out,
        deadline_seconds=options.deadline_seconds,
    )

    async def watched() -> AdapterReport:
        asyncio.get_running_loop().set_exception_handler(log_loop_failure)
        return await task

    try:
        return asyncio.run(watched())
    except TimeoutError:
        message = (
            f"the adapter was not judged within {options.deadline_seconds:.0f} s; give the training more CPU,"
            " or the model a shorter golden.jsonl"
        )
        raise StartError(Reason.UNFIT, message) from None


def _prepare(options: argparse.Namespace, order: TrainOrder, config: ServerConfig) -> AdapterReport | None:
    return prepare(
        config,
        order,
        examples=options.examples,
        work=options.work,
        held_out_dir=options.held_out,
        now=time.time(),
    )


_TASKS: Final[dict[str, Callable[[argparse.Namespace, TrainOrder, ServerConfig], AdapterReport | None]]] = {
    "prepare": _prepare,
    "judge": _judge,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 prepared or accepted, 1 not, 2 bad settings."""
    setup_logging()
    options, rest = _parse(sys.argv[1:] if argv is None else argv)
    reason, message, code = Reason.INTERNAL_ERROR, "", 1
    try:
        order, config = _settings(options, rest)
        confine(config.sandbox)
        report = _TASKS[options.task](options, order, config)
        if report is None:
            return 0
        text = to_message(report)
        _log.info("%s: %s", options.task, report.outcome, extra={"fields": {"report": text}})
        write_termination(options.termination_log, text)
        return 0 if report.outcome == TrainOutcome.ACCEPTED else 1
    except ConfigError as error:
        reason, message, code = Reason.UNFIT, str(error), 2
    except StartError as error:
        reason, message = error.reason, str(error)
    except GoldenError as error:
        reason, message = Reason.UNFIT, f"the model cannot be judged: {error}"
    except Exception as error:
        message = describe_exception(error)
    _log.error("%s failed: %s", options.task, message, extra={"fields": {"reason": reason}})
    write_termination(options.termination_log, Termination(reason=reason, message=message).to_json())
    return code


def run() -> int:
    """As a process of its own, whose threads may fail, too: nothing that they say of a text is printed."""
    log_uncaught()
    return main()


if __name__ == "__main__":
    sys.exit(run())
