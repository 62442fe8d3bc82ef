# SPDX-License-Identifier: Apache-2.0
"""The planner of SLMModels: versions, the Jobs that make and measure variants, gates, and the offer."""
