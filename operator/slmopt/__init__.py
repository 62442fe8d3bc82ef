# SPDX-License-Identifier: Apache-2.0
"""Makes a model smaller and publishes it: the tools that run in the Jobs of an SLMModel, or on a laptop.

Works on exports of the onnxruntime-genai builder, without torch. Depends on `slmwire` alone.
"""
