# SPDX-License-Identifier: Apache-2.0
"""`plan(observed, now) -> Plan`: pure; no I/O, no clock, no random numbers."""
