# SPDX-License-Identifier: Apache-2.0
"""Resolution of model sources: which exact bytes a source in a spec stands for.

It happens once, here, so that every node gets the same bytes. Nothing of the model itself is
downloaded but small files whose hash the source does not tell.
"""

from slmops.adapters.sources.resolver import build_resolver

__all__ = ["build_resolver"]
