# SPDX-License-Identifier: Apache-2.0
"""The read-only fleet page: documents made of what the operator has in memory, and a server for them."""
