# SPDX-License-Identifier: Apache-2.0
"""`kubectl slm simulate`: the operator's own planner on a virtual fleet, in virtual time."""
