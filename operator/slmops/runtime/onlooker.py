# SPDX-License-Identifier: Apache-2.0
"""Somebody who only looks on: told of what changes, never asked for anything."""

from slmops.model.observed import Deployment
from slmops.model.plan import Transition
from slmops.runtime.events import Subject
from slmops.runtime.resource import DeploymentKey


class Onlooker:
    """Looks away; who looks on overrides what concerns him. Every method must be quick and not fail."""

    def changed(self, key: DeploymentKey | None) -> None:
        """Something else is known of a deployment's pods, nodes or objects; None: of the fleet at large."""

    def status_seen(self, deployment: Deployment) -> None:
        """A deployment is new, or its spec or status differs from before."""

    def all_changed(self) -> None:
        """What this operator may do, or whether it knows the nodes, is another than before."""

    def gone(self, key: DeploymentKey) -> None:
        """A deployment is no more."""

    def event_posted(self, subject: Subject, transition: Transition, at: float) -> None:
        """An Event was made of a transition; `at` is in seconds since the epoch."""
