# SPDX-License-Identifier: Apache-2.0
"""Makes a model smaller and publishes it: the tools that run in the Jobs of an SLMModel, or on a laptop.

Works on exports of the onnxruntime-genai builder, without torch. Depends on `slmwire` alone.
"""

import os

# Before numpy is imported: its threads wait for each other without sleeping, which on a node that serves at
# the same time costs more than they bring. Who has cores to spare sets the variable.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
