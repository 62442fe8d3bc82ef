# SPDX-License-Identifier: Apache-2.0
"""Benchmarks against the tools that a user would otherwise take, side by side in one run."""
