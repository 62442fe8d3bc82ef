# SPDX-License-Identifier: Apache-2.0
"""Why a write is not even tried, or not forced."""

from slmops.adapters.errors import KubeError


class ForeignObject(KubeError):
    """An object of the wanted name exists and belongs to somebody else."""


class WritesForbidden(KubeError):
    """This process does not hold the Lease (any more): nothing may be written."""
