# SPDX-License-Identifier: Apache-2.0
"""Command line: `python -m slmopt step|publish|run|train`.

    slmopt step --index I --job FILE        one step of a Job: /workspace/step-(I-1) -> /workspace/step-I
    slmopt publish --job FILE               the last step's output to where the job says
    slmopt run --recipe FILE SRC DST        a whole recipe, for a laptop
    slmopt train --model-dir DIR --job FILE an adapter of the model that a node serves, from token ids

Exit codes: 0 done, 1 failed (reason in the termination log), 2 wrong usage, 143 stopped.
"""

import argparse
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from slmopt.errors import NO_SPACE, JobError, OptimizeError, unfit
from slmopt.job import Job, parse_job
from slmopt.log import log
from slmopt.publish import publish_model
from slmopt.recipes import apply_recipe, apply_step
from slmopt.web import Web
from slmwire import jobs, paths
from slmwire.reasons import Reason, Termination

EXIT_FAILED = 1
EXIT_STOPPED = 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    # onnxruntime sends usage events unless it is told not to; nothing leaves the site.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    logging.basicConfig(stream=sys.stderr, level=logging.ERROR)
    options = _parse(arguments)
    command: Callable[[argparse.Namespace], str] = options.run
    began = time.monotonic()
    reason, message = Reason.INTERNAL_ERROR, ""
    try:
        _write_termination(options.termination_log, command(options))
        return 0
    except JobError as error:
        reason, message = Reason.UNFIT, str(error)
    except OptimizeError as error:
        reason, message = error.reason, str(error)
    except MemoryError:
        reason, message = (
            Reason.INSUFFICIENT_CAPACITY,
            "not enough memory for this step; some need four times the model's size",
        )
    except OSError as error:
        full = error.errno in NO_SPACE
        reason = Reason.INSUFFICIENT_CAPACITY if full else Reason.INTERNAL_ERROR
        message = f"{error.filename or 'a file'}: {error.strerror}" + ("; enlarge the volume" if full else "")
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        log("defect", level="error", trace=traceback.format_exc())
    log("failed", level="error", reason=reason.value, why=message)
    milliseconds = round((time.monotonic() - began) * 1000)
    ended = Termination(reason=reason, message=message, milliseconds=milliseconds)
    _write_termination(options.termination_log, ended.to_json())
    return EXIT_FAILED


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="slmopt", description="Optimise and publish models.")
    parser.add_argument(
        "--termination-log", type=Path, help=f"default {paths.TERMINATION_LOG} where there is one"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    step = commands.add_parser("step", help="one step of a Job")
    step.set_defaults(run=_run_step)
    step.add_argument("--index", type=int, required=True, help="number of the step, from 0")
    publish = commands.add_parser("publish", help="publish the last step's output")
    publish.set_defaults(run=_run_publish)
    publish.add_argument("--secrets", type=Path, default=Path(jobs.PUBLISH_SECRET_DIR))
    publish.add_argument("--key", type=Path, default=Path(jobs.SIGNING_KEY_FILE))
    for sub in (step, publish):
        sub.add_argument("--job", type=Path, default=Path(jobs.JOB_FILE), help="default %(default)s")
        sub.add_argument("--work", type=Path, default=Path(jobs.WORK_DIR), help="default %(default)s")
        sub.add_argument(
            "--source",
            type=Path,
            default=os.environ.get(jobs.SOURCE_TREE_ENV),
            help=f"folder with the source's files; default ${jobs.SOURCE_TREE_ENV}",
        )
    run = commands.add_parser("run", help="a whole recipe, from one folder to another")
    run.set_defaults(run=_run_recipe)
    run.add_argument("--recipe", type=Path, required=True, help="JSON file with steps")
    run.add_argument("source", type=Path, metavar="SRC")
    run.add_argument("target", type=Path, metavar="DST")
    train = commands.add_parser("train", help="an adapter, from token ids")
    train.set_defaults(run=_run_train)
    train.add_argument("--model-dir", type=Path, required=True, help="folder with the model's files")
    train.add_argument("--job", type=Path, default=Path(jobs.JOB_FILE), help="default %(default)s")
    train.add_argument("--work", type=Path, default=Path(jobs.WORK_DIR), help="default %(default)s")
    return parser.parse_args(arguments)


def _read_job(path: Path) -> Job:
    try:
        return parse_job(path.read_bytes())
    except OSError as error:
        raise JobError(f"{path} cannot be read ({error.strerror}); name the job file") from error


def _input_of(options: argparse.Namespace, index: int) -> Path:
    """What step `index` reads: the step before, or the source."""
    if index > 0:
        return Path(options.work) / Path(jobs.STEP_DIR.format(index=index - 1)).name
    if options.source is None:
        raise JobError(f"no source; set ${jobs.SOURCE_TREE_ENV} or give --source")
    return Path(options.source)


def _run_step(options: argparse.Namespace) -> str:
    job = _read_job(options.job)
    if not 0 <= options.index < len(job.steps):
        raise JobError(f"--index is {options.index}; the job has steps 0 to {len(job.steps) - 1}")
    target = _input_of(options, options.index + 1)
    _remove_left(options.work, "slmopt-*")
    began = time.monotonic()
    manifest = apply_step(job.steps[options.index], _input_of(options, options.index), target)
    milliseconds = round((time.monotonic() - began) * 1000)
    return Termination(digest=manifest.digest, milliseconds=milliseconds).to_json()


def _remove_left(work: Path, pattern: str) -> None:
    """Remove the scratch folders of a container that was killed."""
    for left in work.glob(pattern):
        shutil.rmtree(left, ignore_errors=True)


def _run_publish(options: argparse.Namespace) -> str:
    job = _read_job(options.job)
    if job.target is None:
        raise JobError("publish is missing; name one of oci, s3, pvc")
    source = _input_of(options, len(job.steps))
    _remove_left(options.work, "publish-*")
    with tempfile.TemporaryDirectory(prefix="publish-", dir=options.work) as scratch:
        report = publish_model(
            source,
            job.target,
            scratch=Path(scratch),
            secrets=options.secrets,
            web=Web(),
            key=options.key if job.sign else None,
        )
    log("published", digest=report.digest, reference=report.reference, signed=report.signed)
    return jobs.to_message(report)


def _run_recipe(options: argparse.Namespace) -> str:
    job = _read_job(options.recipe)
    if not job.steps:
        raise unfit("steps is empty; name at least one step")
    manifest = apply_recipe(job.steps, options.source, options.target)
    return Termination(digest=manifest.digest).to_json()


def _run_train(options: argparse.Namespace) -> str:
    from slmopt.training.dumps import forbid_dumps
    from slmopt.training.run import SCRATCH, train_adapter

    forbid_dumps()
    began = time.monotonic()
    _remove_left(options.work, f"{SCRATCH}*")
    digest = train_adapter(options.model_dir, options.work, options.job)
    milliseconds = round((time.monotonic() - began) * 1000)
    return Termination(digest=digest, milliseconds=milliseconds).to_json()


def _write_termination(path: Path | None, text: str) -> None:
    # Without --termination-log the file is only written where the kubelet put one.
    flags = os.O_WRONLY | os.O_TRUNC | (os.O_CREAT if path is not None else 0)
    with suppress(OSError):
        descriptor = os.open(path or paths.TERMINATION_LOG, flags, 0o644)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)


def _stop(_signal: int, _frame: object) -> None:
    sys.exit(EXIT_STOPPED)


if __name__ == "__main__":
    # As process 1 of a container, SIGTERM is ignored unless somebody handles it; scratch files go.
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main())
