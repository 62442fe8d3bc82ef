# SPDX-License-Identifier: Apache-2.0
"""`chat`: talk to a deployment's model, with nothing but the kubeconfig."""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from slmcli.awaiting import await_pod
from slmcli.chat import (
    Answer,
    Conversation,
    answer_document,
    build_request,
    read_answer,
    read_key,
    summary_text,
)
from slmcli.errors import BrokenOffError, CliError, Exit, ForbiddenError, RefusedError, UsageError
from slmcli.output import add_output_argument, to_document_text, with_head
from slmcli.safe import clean_lines
from slmcli.serving import ServingPod
from slmcli.session import Session
from slmcli.steer import seconds_argument
from slmcli.view import DeploymentView, read_deployment
from slmwire.paths import PATH_CHAT

ASKS = 3
"""Through the API server's proxy one answer in some fifty of a very fast model ends behind its first, empty
event; asked without the proxy, none of five hundred did."""
HELP = "/reset forgets what was said, /exit or Ctrl-D leaves, Ctrl-C ends an answer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("name", metavar="NAME", help="name of the SLMDeployment")
    parser.add_argument(
        "-m", "--message", help="ask this and end (default: standard input if it is no terminal, else a talk)"
    )
    parser.add_argument("--node", help="ask the pod of this node (default: any)")
    parser.add_argument("--system", default="", metavar="TEXT", help="system prompt")
    parser.add_argument(
        "--temperature", type=_temperature, metavar="T", help="0 to 2 (default: the model's own)"
    )
    parser.add_argument(
        "--timeout",
        type=seconds_argument,
        default=300.0,
        metavar="DURATION",
        help="how long to wait for a ready pod, for example 10m; 0 does not wait (default: 5m)",
    )
    parser.add_argument("--key-file", metavar="FILE", help="file with an API key, where the server wants one")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="say which pod answered and how fast, also in a pipe"
    )
    add_output_argument(parser)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 2:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 2")
    return value


@dataclass(slots=True, kw_only=True)
class _Talk:
    """Sends questions to a pod, and finds another pod when that one has failed."""

    arguments: argparse.Namespace
    session: Session
    view: DeploymentView
    key: str
    conversation: Conversation
    pod: ServingPod | None = field(default=None)

    def ask(self, question: str, show: Callable[[str], None]) -> tuple[ServingPod, Answer]:
        """One question with its answer; CliError, and then it is not part of the conversation."""
        pod = self.pod or self.find()
        cluster = self.session.cluster
        body = build_request(
            pod.model or (self.view.spec.model.name if self.view.spec is not None else self.view.name),
            self.conversation.messages(question),
            temperature=self.arguments.temperature,
        )
        self.pod = None
        shown: list[str] = []

        def note(text: str) -> None:
            shown.append(text)
            show(text)

        for left in reversed(range(ASKS)):
            try:
                with closing(cluster.pod_stream(pod.address, PATH_CHAT, body, key=self.key)) as pieces:
                    answer = read_answer(pieces, note, clock=time.monotonic)
                break
            except BrokenOffError:
                # Nobody has seen a word of it, so it can be asked again.
                if shown or not left:
                    raise
        self.pod = pod
        self.conversation.keep(question, answer.text)
        return pod, answer

    def find(self) -> ServingPod:
        """The pod that the next question goes to; waits for one."""
        arguments = self.arguments
        self.view, self.pod = await_pod(
            self.session, arguments.name, node=arguments.node, timeout_seconds=arguments.timeout
        )
        return self.pod


def run(arguments: argparse.Namespace, session: Session) -> Exit:
    """Run it."""
    talk = _Talk(
        arguments=arguments,
        session=session,
        view=read_deployment(session.cluster.get(session.namespace, arguments.name)),
        key=_key(arguments.key_file),
        conversation=Conversation(system=arguments.system),
    )
    if arguments.message is not None or not session.inp.isatty():
        question = arguments.message if arguments.message is not None else session.inp.read()
        if not question.strip():
            raise UsageError("there is no question; give one with -m or on standard input")
        return _ask_once(talk, question)
    if arguments.output:
        raise UsageError("-o is for one answer; ask with -m or on standard input")
    return _converse(talk)


def _ask_once(talk: _Talk, question: str) -> Exit:
    session, arguments = talk.session, talk.arguments
    if arguments.output:
        pod, answer = talk.ask(question, lambda _: None)
        body = answer_document(talk.view.namespace, talk.view.name, pod, answer)
        session.terminal.write(to_document_text(with_head("ChatAnswer", body), arguments.output))
    else:
        pod, answer = talk.ask(question, lambda text: session.terminal.write(clean_lines(text)))
        session.terminal.write("\n")
    if arguments.verbose or (session.terminal.out.isatty() and not arguments.output):
        session.say(summary_text(pod, answer))
    return Exit.INTERRUPTED if answer.finish == "interrupted" else Exit.OK


def _converse(talk: _Talk) -> Exit:
    session = talk.session
    talk.find()
    session.say(f"{talk.view.namespace}/{talk.view.name}: {HELP}")
    while True:
        try:
            line = _read_line(session)
        except KeyboardInterrupt:
            session.say("")
            continue
        if line is None or line.strip() in ("/exit", "/quit"):
            return Exit.OK
        if line.strip() == "/reset":
            talk.conversation.reset()
            session.say("what was said is forgotten")
        elif line.strip() in ("/help", "/?"):
            session.say(HELP)
        elif line.strip():
            _answer(talk, line)


def _answer(talk: _Talk, line: str) -> None:
    session = talk.session
    shown: list[str] = []

    def show(text: str) -> None:
        shown.append(text)
        session.terminal.write(clean_lines(text))

    try:
        pod, answer = talk.ask(line, show)
    except ForbiddenError:
        raise
    except CliError as error:
        more = (
            "" if isinstance(error, RefusedError) else "; the next question goes to a pod that is ready then"
        )
        session.terminal.write("\n" if shown else "")
        session.say(f"error: {error}{more}")
    except KeyboardInterrupt:
        session.say("not sent")
    else:
        session.terminal.write("\n")
        session.say(summary_text(pod, answer))


def _read_line(session: Session) -> str | None:
    """The next line without its end; None at the end of input."""
    if session.inp is sys.stdin:
        with suppress(ImportError):
            import readline  # noqa: F401  (gives `input` editing and history)
        try:
            return input("> ")
        except EOFError:
            session.say("")
            return None
    line = session.inp.readline()
    return line.rstrip("\n") if line else None


def _key(path: str | None) -> str:
    if path is None:
        return ""
    try:
        return read_key(Path(path).read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--key-file {path}: cannot be read: {error}") from None
