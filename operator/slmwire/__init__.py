# SPDX-License-Identifier: Apache-2.0
"""Names that the operator, the inference server and the fetcher agree on.

This package is the only thing those three share. It holds constants and pure helpers, imports
nothing of ours and nothing outside the standard library, so that every image can carry it.
"""
