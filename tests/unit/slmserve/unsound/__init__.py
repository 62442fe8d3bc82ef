# SPDX-License-Identifier: Apache-2.0
"""Engine modules that behave as badly as native libraries can."""
