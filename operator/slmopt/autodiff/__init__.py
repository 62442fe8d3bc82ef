# SPDX-License-Identifier: Apache-2.0
"""Reverse-mode differentiation of ONNX graphs in numpy: exports as they are deployed, weights frozen."""
