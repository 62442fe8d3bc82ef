# SPDX-License-Identifier: Apache-2.0
"""`kubectl slm`: the command line of SLMOps."""
