# SPDX-License-Identifier: Apache-2.0
"""What holds for all unit tests."""

from hypothesis import settings

# How long an example takes is up to the machine and who else uses it.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
