# SPDX-License-Identifier: Apache-2.0
"""Log lines."""

import json
import logging

from slmops.runtime.logs import JsonFormatter, TextFormatter, fields_of


def _record(**fields: object) -> logging.LogRecord:
    record = logging.LogRecord("slmops", logging.INFO, "file", 1, "wave %s passed", ("pilot",), None)
    record.__dict__.update(fields_of(**fields))
    return record


def test_json_is_one_object_per_line_with_its_fields() -> None:
    line = JsonFormatter().format(_record(namespace="ns", deployment="orders", wave=0, step="", at=None))
    body = json.loads(line)
    assert "\n" not in line
    assert (body["level"], body["msg"], body["deployment"], body["wave"]) == (
        "info", "wave pilot passed", "orders", 0,
    )  # fmt: skip
    assert "step" not in body and "at" not in body
    assert body["ts"].endswith("+00:00")


def test_json_keeps_a_traceback_in_the_same_line() -> None:
    record = _record()
    try:
        raise ValueError("no")
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert "ValueError: no" in json.loads(line)["error"]


def test_text_is_readable() -> None:
    assert (
        TextFormatter().format(_record(deployment="orders")).endswith("wave pilot passed deployment=orders")
    )
