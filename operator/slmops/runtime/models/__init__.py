# SPDX-License-Identifier: Apache-2.0
"""The runtime of SLMModels: what is known of them and their Jobs, their workers and their writes."""
