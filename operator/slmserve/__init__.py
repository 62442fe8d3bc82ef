# SPDX-License-Identifier: Apache-2.0
"""Inference server for one small language model: OpenAI-compatible HTTP over decoding slots.

It knows nothing of Kubernetes and nothing of the operator; both sides share `slmwire`.
"""

import os

# onnxruntime sends usage events unless it is told not to before it is loaded; our images say so as well.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
