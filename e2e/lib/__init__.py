# SPDX-License-Identifier: Apache-2.0
"""What suite, demo and benchmark share: the cluster, the operator's release, manifests, chat and traffic."""

from e2e.lib.chat import Answer, NodeClient
from e2e.lib.deployment import Deployment
from e2e.lib.history import Frame, History
from e2e.lib.release import OperatorImages, install_operator, rig_images, uninstall_operator
from e2e.lib.session import Cluster, FaultsUnavailableError, WaitError, open_cluster
from e2e.lib.traffic import Traffic, TrafficReport

__all__ = [
    "Answer",
    "Cluster",
    "Deployment",
    "FaultsUnavailableError",
    "Frame",
    "History",
    "NodeClient",
    "OperatorImages",
    "Traffic",
    "TrafficReport",
    "WaitError",
    "install_operator",
    "open_cluster",
    "rig_images",
    "uninstall_operator",
]
