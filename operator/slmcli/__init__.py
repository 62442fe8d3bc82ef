# SPDX-License-Identifier: Apache-2.0
"""`kubectl slm`: look at SLMDeployments and steer their rollouts from a terminal.

It is a client of the Kubernetes API and nothing else: it reads objects and sets annotations, so what a
person may do with it is what their account may do.
"""
