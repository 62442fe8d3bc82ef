# SPDX-License-Identifier: Apache-2.0
"""Inference server for one small language model: OpenAI-compatible HTTP over decoding slots.

It knows nothing of Kubernetes and nothing of the operator; both sides share `slmwire`.
"""
