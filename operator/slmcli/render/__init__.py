# SPDX-License-Identifier: Apache-2.0
"""Pictures of what was read: pure functions from views to lines."""
