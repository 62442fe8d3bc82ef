# SPDX-License-Identifier: Apache-2.0
"""`status --watch`: a view that redraws itself in a terminal, and one line per change elsewhere."""

import queue
import threading
from collections.abc import Iterator
from typing import Final

from rich.console import Group, RenderableType
from rich.live import Live

from slmcli.commands.status import list_events
from slmcli.documents import status_document
from slmcli.errors import CliError, Exit
from slmcli.follow import Deleted, Lost, Seen, Update, follow
from slmcli.output import to_document_stream
from slmcli.render.status import render_change, render_live, render_status
from slmcli.safe import clean
from slmcli.session import Session
from slmcli.times import clock_text
from slmcli.view import DeploymentView, EventView, read_deployment

TICK_SECONDS: Final = 1.0
"""Ages go on while nothing happens."""
EVENTS_SECONDS: Final = 3.0
"""Events are read at most this often."""


def watch_status(session: Session, name: str, *, output: str) -> Exit:
    """Follow until Ctrl-C (130) or until the object is deleted (0)."""
    updates = follow(session.cluster, session.namespace, name, sleep=session.sleep)
    try:
        if output in ("json", "yaml"):
            return _stream_documents(session, updates, output)
        if session.terminal.live:
            return _Screen(session, updates).run()
        return _stream_lines(session, updates)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED


def _stream_documents(session: Session, updates: Iterator[Update], output: str) -> Exit:
    for update in updates:
        match update:
            case Seen(body=body):
                view = read_deployment(body)
                document = status_document(view, list_events(session, view))
                session.terminal.write(to_document_stream(document, output))
            case Lost(why=why):
                session.say(clean(why))
            case Deleted():
                break
    return Exit.OK


def _stream_lines(session: Session, updates: Iterator[Update]) -> Exit:
    last = ""
    known: set[str] = set()
    first = True
    for update in updates:
        at = clock_text(session.now())
        match update:
            case Seen(body=body):
                view = read_deployment(body)
                operations = view.status.operations if view.status is not None else []
                for operation in operations:
                    if operation.token not in known and not first:
                        session.terminal.write(
                            f"{at} {operation.operation} {operation.token} {operation.outcome}: "
                            f"{operation.message}\n"
                        )
                    known.add(operation.token)
                first = False
                line = render_change(view)
                if line != last:
                    session.terminal.write(f"{at} {line}\n")
                last = line
            case Lost(why=why):
                session.say(f"{at} {clean(why)}; trying again")
            case Deleted():
                session.terminal.write(f"{at} deleted\n")
    return Exit.OK


class _Screen:
    """The redrawing view. Threads read the cluster, so that a slow link does not freeze it."""

    def __init__(self, session: Session, updates: Iterator[Update]) -> None:
        self._session = session
        self._updates = updates
        self._queue: queue.Queue[Update | CliError] = queue.Queue()
        self._changed = threading.Event()
        self._view: DeploymentView | None = None
        self._events: tuple[EventView, ...] = ()
        self._note = ""
        self._console = session.terminal.console()

    def run(self) -> Exit:
        """Draw until the object is deleted (0) or Ctrl-C (130); leave the last picture behind."""
        for work in (self._pump, self._read_events):
            threading.Thread(target=work, daemon=True).start()
        code = Exit.OK
        try:
            with Live(
                console=self._console, screen=True, auto_refresh=False, get_renderable=self._picture
            ) as live:
                while self._take():
                    live.refresh()
        except KeyboardInterrupt:
            code = Exit.INTERRUPTED
        if self._view is not None:
            width, now = self._console.size.width, self._session.now()
            self._console.print(*render_status(self._view, self._events, now=now, width=width), sep="\n")
        if self._note:
            self._session.say(self._note)
        return code

    def _picture(self) -> RenderableType:
        if self._view is None:
            return Group()
        size = self._console.size
        return Group(
            *render_live(
                self._view,
                self._events,
                now=self._session.now(),
                width=size.width,
                height=size.height,
                note=self._note,
            )
        )

    def _take(self) -> bool:
        """Take in what arrived within a tick; False when nothing will follow."""
        try:
            update = self._queue.get(timeout=TICK_SECONDS)
        except queue.Empty:
            return True
        match update:
            case Seen(body=body):
                self._view = read_deployment(body)
                self._note = ""
                self._changed.set()
            case Lost(why=why):
                self._note = f"{clean(why)}; trying again"
            case Deleted():
                self._note = "it was deleted"
                return False
            case _:
                raise update
        return True

    def _pump(self) -> None:
        try:
            for update in self._updates:
                self._queue.put(update)
        except CliError as error:
            self._queue.put(error)

    def _read_events(self) -> None:
        while True:
            self._changed.wait()
            self._changed.clear()
            view = self._view
            if view is not None:
                try:
                    self._events = list_events(self._session, view)
                except CliError:
                    self._changed.set()  # the link is down; the note says so already
            self._session.sleep(EVENTS_SECONDS)
