# SPDX-License-Identifier: Apache-2.0
"""Training of an adapter's matrices on token ids, on the hardware and with the files that serve the model."""
