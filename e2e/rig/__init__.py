# SPDX-License-Identifier: Apache-2.0
"""A real multi-node Kubernetes on one Linux machine, for the tests, the demo and the benchmark."""

from e2e.rig.access import ClusterAccess, existing_cluster
from e2e.rig.control_plane import ControlPlane
from e2e.rig.kubectl import Kubectl
from e2e.rig.rig import Rig
from e2e.rig.shell import RigError

__all__ = ["ClusterAccess", "ControlPlane", "Kubectl", "Rig", "RigError", "existing_cluster"]
