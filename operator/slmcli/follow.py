# SPDX-License-Identifier: Apache-2.0
"""Follow one SLMDeployment by a watch that survives broken links and expired resource versions."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from slmcli.cluster import Body, Cluster
from slmcli.errors import CliError, ForbiddenError, GoneError, NotFoundError

PATIENCE_SECONDS: Final = (1.0, 2.0, 5.0, 10.0)
"""Time before each further attempt; the last one repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The object as it is now."""

    body: Body


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The link broke; another attempt follows."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deleted:
    """The object is gone; nothing follows."""


Update = Seen | Lost | Deleted


def follow(
    cluster: Cluster, namespace: str, name: str, *, sleep: Callable[[float], None]
) -> Iterator[Update]:
    """The object at first and after every change, until it is deleted.

    Raises CliError when it cannot be read at first, and ForbiddenError at any time: waiting helps neither.
    """
    body = cluster.get(namespace, name)
    uid = body["metadata"].get("uid")
    yield Seen(body=body)
    failures = 0
    while True:
        try:
            began = version = str(body["metadata"]["resourceVersion"])
            for event in cluster.watch(namespace, name, version):
                failures = 0
                if event["type"] == "DELETED":
                    yield Deleted()
                    return
                body = event["object"]
                version = str(body["metadata"]["resourceVersion"])
                yield Seen(body=body)
            if version == began:
                sleep(
                    PATIENCE_SECONDS[0]
                )  # a server that ends each watch at once must not be asked in a circle
            continue
        except ForbiddenError:
            raise
        except GoneError:
            pass
        except CliError as error:
            yield Lost(why=str(error))
            sleep(PATIENCE_SECONDS[min(failures, len(PATIENCE_SECONDS) - 1)])
            failures += 1
        try:
            body = cluster.get(namespace, name)
        except NotFoundError:
            yield Deleted()
            return
        except ForbiddenError:
            raise
        except CliError:
            continue  # the watch will say so, and wait
        if body["metadata"].get("uid") != uid:
            yield Deleted()
            return
        yield Seen(body=body)
