# SPDX-License-Identifier: Apache-2.0
"""Engines that compute logits; each implements `engines.base.Engine`."""
