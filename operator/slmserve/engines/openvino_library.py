# SPDX-License-Identifier: Apache-2.0
"""OpenVINO without telemetry: its tools import `openvino_telemetry`, and do without where they cannot."""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402
import openvino_genai  # noqa: E402

__all__ = ["openvino", "openvino_genai"]
