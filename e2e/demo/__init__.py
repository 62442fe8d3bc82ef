# SPDX-License-Identifier: Apache-2.0
"""The demo: the product's main job on real nodes, told as it happens."""
