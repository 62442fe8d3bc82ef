# SPDX-License-Identifier: Apache-2.0
"""End-to-end tests: real nodes, containers, models and Prometheus; nothing is mocked."""
