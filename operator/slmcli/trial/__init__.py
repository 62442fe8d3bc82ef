# SPDX-License-Identifier: Apache-2.0
"""`try`: a deployment's model served on this machine, without a cluster."""
