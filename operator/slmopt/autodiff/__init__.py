# SPDX-License-Identifier: Apache-2.0
"""Reverse-mode differentiation of ONNX graphs in numpy: of an export as it is deployed, with frozen weights."""
