# SPDX-License-Identifier: Apache-2.0
"""End-to-end rig, suite, demo and benchmark: everything that needs a real cluster."""
