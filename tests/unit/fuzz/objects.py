# SPDX-License-Identifier: Apache-2.0
"""Nodes and pods as a device may report them that is not ours any more.

Types are those that the API server checks (a restart count is a 32-bit integer); all else is free.
"""

from typing import Any, Final

from hypothesis import strategies as st

from slmwire import labels
from slmwire.reasons import Reason
from tests.unit.fuzz.grammar import ODD_NUMBER, text, values

_TIMES: Final = (
    None, "2025-06-15T12:00:00Z", "2025-06-15T12:00:00.123456+23:59", "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-23:59", "1600-01-01T00:00:00Z",
)  # fmt: skip
_MEMORIES: Final = (
    "0", "8Gi", "8134052Ki", "1", "-1", "1e3", "1E18", "12345678m", "9223372036854775807", "9" * 400,
    "1.5Gi", "1Pi", "1Ei", "-8Gi", "n",
)  # fmt: skip
_REASONS: Final = (
    *(reason.value for reason in Reason),
    "OOMKilled",
    "Error",
    "CrashLoopBackOff",
    "",
    "\x1b[2J",
)

times = st.sampled_from(_TIMES)
tags = st.dictionaries(
    st.one_of(st.sampled_from(["slm", "site", "kubernetes.io/arch"]), text), text, max_size=4
)


def _json(value: Any) -> str:
    import json

    return json.dumps(value)


messages = st.one_of(
    text,
    st.just("[" * 4096),
    st.just("9" * 4096),
    values.map(_json),
    st.fixed_dictionaries(
        {"reason": st.one_of(st.sampled_from(_REASONS), values)},
        optional={
            "message": st.one_of(text, values, st.just("\ud800"), st.just("x" * 4000)),
            "digest": st.one_of(text, values),
            "bytesDownloaded": st.one_of(st.sampled_from([*ODD_NUMBER, 10**300]), values),
            "milliseconds": values,
        },
    ).map(_json),
)
"""Termination messages."""


def _condition(kind: str) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {"type": st.just(kind), "status": st.sampled_from(["True", "False", "Unknown", "x"])},
        optional={"lastTransitionTime": times, "reason": text, "message": text},
    )


def nodes(name: str) -> st.SearchStrategy[Any]:
    """A Node of that name; most match the planner's usual spec."""
    return st.fixed_dictionaries(
        {
            "metadata": st.fixed_dictionaries(
                {"name": st.just(name)},
                optional={
                    "labels": st.one_of(st.just({"slm": "yes", "site": "s1"}), tags),
                    "deletionTimestamp": times,
                    "uid": text,
                },
            )
        },
        optional={
            "spec": st.one_of(st.none(), st.just({}), st.just({"unschedulable": True})),
            "status": st.fixed_dictionaries(
                {},
                optional={
                    "conditions": st.one_of(st.none(), st.lists(_condition("Ready"), max_size=2)),
                    "allocatable": st.one_of(
                        st.none(), st.fixed_dictionaries({}, optional={"memory": st.sampled_from(_MEMORIES)})
                    ),
                    "addresses": st.lists(
                        st.fixed_dictionaries(
                            {"type": st.sampled_from(["InternalIP", "Hostname", "x"]), "address": text}
                        ),
                        max_size=2,
                    ),
                },
            ),
        },
    )


_state: st.SearchStrategy[Any] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"waiting": st.one_of(st.none(), st.fixed_dictionaries({"reason": text}))}),
    st.fixed_dictionaries({"running": st.fixed_dictionaries({}, optional={"startedAt": times})}),
    st.fixed_dictionaries(
        {
            "terminated": st.fixed_dictionaries(
                {"exitCode": st.sampled_from([0, 1, 137, -1, 2**31 - 1, -(2**31)])},
                optional={"reason": st.sampled_from(_REASONS), "message": messages, "finishedAt": times},
            )
        }
    ),
)
_container = st.fixed_dictionaries(
    {"name": st.sampled_from(["fetch", "server", "step-0", "publish", "evaluate", "x"])},
    optional={
        "restartCount": st.sampled_from([0, 1, 3, 2**31 - 1]),
        "state": st.one_of(st.none(), _state),
        "lastState": st.one_of(st.none(), _state),
        "ready": st.booleans(),
    },
)
pod_statuses = st.fixed_dictionaries(
    {},
    optional={
        "conditions": st.lists(st.one_of(_condition("Ready"), _condition("PodScheduled")), max_size=3),
        "initContainerStatuses": st.one_of(st.none(), st.lists(_container, max_size=2)),
        "containerStatuses": st.one_of(st.none(), st.lists(_container, max_size=2)),
        "phase": st.sampled_from(["Pending", "Running", "Failed", "Succeeded", "x"]),
        "podIP": text,
        "startTime": times,
        "reason": text,
        "message": text,
    },
)


def pods(name: str, node: str, marks: dict[str, str]) -> st.SearchStrategy[Any]:
    """A pod with a workload's labels, some of them spoilt."""
    return st.fixed_dictionaries(
        {
            "metadata": st.fixed_dictionaries(
                {"name": st.just(name), "namespace": st.just("shop")},
                optional={
                    "labels": st.one_of(
                        st.just(marks),
                        st.just(marks),
                        st.dictionaries(st.sampled_from([*labels_of_ours()]), text, max_size=3).map(
                            lambda odd: marks | odd
                        ),
                    ),
                    "creationTimestamp": times,
                    "deletionTimestamp": times,
                },
            )
        },
        optional={
            "spec": st.one_of(
                st.none(), st.just({"nodeName": node}), st.just({}), st.just({"nodeName": "unknown"})
            ),
            "status": pod_statuses,
        },
    )


def labels_of_ours() -> tuple[str, ...]:
    """Keys that the operator reads from a pod."""
    return (labels.REVISION, labels.VARIANT, labels.ROLE, labels.SITE, labels.DEPLOYMENT)
