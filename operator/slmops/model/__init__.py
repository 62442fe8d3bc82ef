# SPDX-License-Identifier: Apache-2.0
"""Immutable values that flow through the operator: what was observed, and what is to be done."""
