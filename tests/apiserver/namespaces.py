# SPDX-License-Identifier: Apache-2.0
"""Namespaces that several tests share, and that may be made anew while they are still on their way out."""

from functools import partial

from e2e.rig import ControlPlane, RigError
from e2e.rig.progress import wait_until


def create_namespaces(plane: ControlPlane, *names: str) -> None:
    """Make them; one of the same name that is being deleted is waited for.

    A module's tests may run in two parts, with those of others between, and its fixtures twice then.
    """

    def made(name: str) -> bool:
        try:
            plane.kubectl("create", "namespace", name)
        except RigError as error:
            if "AlreadyExists" not in str(error):
                raise
            return False
        return True

    for name in names:
        wait_until(f"namespace {name} being made", partial(made, name), timeout_seconds=120)
