# SPDX-License-Identifier: Apache-2.0
"""SLMOps: rolls small language models out to edge Kubernetes nodes, wave by wave."""

__version__ = "0.1.0"
