# SPDX-License-Identifier: Apache-2.0
"""`train`: let the sites of spec.adaptation train an adapter now, whatever the cooldown."""

import argparse

from slmcli.errors import Exit, RefusedError
from slmcli.session import Session
from slmcli.steer import Change, Outcome, add_steer_arguments, answered, steer
from slmcli.times import stamp
from slmcli.view import DeploymentView
from slmops.api import TRAIN_ANNOTATION


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_steer_arguments(parser)


def run(arguments: argparse.Namespace, session: Session) -> Exit:
    """Run it; RefusedError where no site may adapt the model."""
    token = stamp(session.now())

    def outcome(view: DeploymentView) -> Outcome | None:
        if (found := answered("train", token)(view)) is not None:
            return found
        adaptation = view.status.adaptation if view.status is not None else None
        if adaptation is None or adaptation.train_token != token:
            return None
        cannot = [state for state in adaptation.sites if state.phase == "Unsupported"]
        if cannot and len(cannot) == len(adaptation.sites):
            return Outcome(kind="Refused", message=cannot[0].message)
        return Outcome(kind="Done", message="")

    def plan(view: DeploymentView) -> Change:
        adaptation = view.spec.adaptation if view.spec is not None else None
        if view.spec is not None and adaptation is None:
            raise RefusedError(
                "spec.adaptation names no site, so nothing is kept to train on; set it first, see "
                "docs/adaptation.md"
            )
        sites = ", ".join(sorted(adaptation.sites)) if adaptation is not None else "spec.adaptation"
        return Change(
            operation="train",
            annotations={TRAIN_ANNOTATION: token},
            promise=f"an adapter is trained at {sites}, where nodes have kept enough corrections",
            outcome=outcome,
        )

    return steer(session, arguments, plan)
