# SPDX-License-Identifier: Apache-2.0
"""An OpenAI-API client of the standard library alone, to be run where a node's programs run.

It is started as `python3 -` inside a node's network, or in a pod on the node, with one line of JSON on
standard input that says what to do; so it must not import anything of ours.

    {"do": "chat", "url": "http://...", "body": {...}, "timeout_seconds": 30}
        -> one line {"status", "text", "chunks", "first_seconds", "seconds", "body", "error"}
    {"do": "traffic", "url": ..., "bodies": [...], "interval_seconds": 0.5, "timeout_seconds": 5,
     "workers": 2, "duration_seconds": 0}
        -> one line {"at", "status", "seconds", "error"} per request, until standard input ends

`at` is the time of completion in seconds since the epoch.
"""

import http.client
import json
import select
import sys
import threading
import time
import urllib.parse
from typing import Any


def ask(url: str, body: dict[str, Any] | None, *, timeout_seconds: float, path: str = "") -> dict[str, Any]:
    """One request on a connection of its own; never raises."""
    parts = urllib.parse.urlsplit(url)
    begin = time.monotonic()
    result: dict[str, Any] = {
        "status": 0, "text": "", "chunks": 0, "first_seconds": None, "body": None, "error": "",
    }  # fmt: skip
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=timeout_seconds)
    try:
        if body is None:
            connection.request("GET", parts.path or "/")
        else:
            connection.request(
                "POST", parts.path, body=json.dumps(body), headers={"Content-Type": "application/json"}
            )
        answer = connection.getresponse()
        result["status"] = answer.status
        if (answer.getheader("Content-Type") or "").startswith("text/event-stream"):
            _read_stream(answer, result, begin)
        else:
            text = answer.read().decode(errors="replace")
            try:
                result["body"] = json.loads(text)
            except ValueError:
                result["body"] = text
    except (OSError, http.client.HTTPException) as error:
        result["error"] = f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    result["seconds"] = time.monotonic() - begin
    return result


def _read_stream(answer: http.client.HTTPResponse, result: dict[str, Any], begin: float) -> None:
    done = False
    for raw in answer:
        line = raw.decode(errors="replace").strip()
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            done = True
            continue
        event = json.loads(data)
        if "error" in event:
            result["error"] = f"stream: {event['error']}"
        for choice in event.get("choices", []):
            piece = choice.get("delta", {}).get("content") or choice.get("text") or ""
            if piece:
                if result["first_seconds"] is None:
                    result["first_seconds"] = time.monotonic() - begin
                result["text"] += piece
                result["chunks"] += 1
        result["body"] = event
    if not done and not result["error"]:
        result["error"] = "stream: ended without [DONE]"


def run_traffic(order: dict[str, Any]) -> None:
    """Send requests at a steady pace from several threads until standard input ends."""
    stop, lock = threading.Event(), threading.Lock()
    begin = time.monotonic()
    state = {"number": 0}
    duration = order.get("duration_seconds") or float("inf")

    def work() -> None:
        while not stop.is_set():
            with lock:
                number = state["number"]
                state["number"] = number + 1
            due = begin + number * order["interval_seconds"]
            late = time.monotonic() - due
            if late > order["interval_seconds"] * len(threads):
                # Behind the pace (the server is slow or away): skip ahead instead of piling up.
                with lock:
                    behind = int((time.monotonic() - begin) / order["interval_seconds"])
                    state["number"] = max(state["number"], behind)
            elif late < 0 and stop.wait(-late):
                return
            if time.monotonic() - begin > duration:
                return
            body = order["bodies"][number % len(order["bodies"])]
            answer = ask(order["url"], body, timeout_seconds=order["timeout_seconds"])
            line = {
                "at": time.time(), "status": answer["status"], "seconds": answer["seconds"],
                "error": answer["error"], "case": number % len(order["bodies"]), "text": answer_text(answer),
            }  # fmt: skip
            with lock:
                print(json.dumps(line), flush=True)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(order.get("workers", 2))]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        readable, _, _ = select.select([sys.stdin], [], [], 0.2)
        if readable and not sys.stdin.read(1):
            break
    stop.set()
    for thread in threads:
        thread.join(order["timeout_seconds"] + 1)


def answer_text(answer: dict[str, Any]) -> str:
    """The generated text of a streamed or a whole answer."""
    body = answer["body"]
    if answer["text"] or not isinstance(body, dict):
        return str(answer["text"])
    for choice in body.get("choices", []):
        return str(choice.get("message", {}).get("content") or choice.get("text") or "")
    return ""


def main() -> None:
    """Do what the first line of standard input (or the argument) says."""
    order = json.loads(sys.argv[1])
    if order["do"] == "traffic":
        run_traffic(order)
        return
    answer = ask(order["url"], order.get("body"), timeout_seconds=order.get("timeout_seconds", 30))
    answer["text"] = answer_text(answer)
    print(json.dumps(answer))


main()
