# SPDX-License-Identifier: Apache-2.0
"""What the runtime needs from the outside, as protocols; adapters implement them."""
