# SPDX-License-Identifier: Apache-2.0
"""Port to a metrics provider."""

from typing import Protocol

from slmops.model.observed import MetricQuery, ProviderSettings, Samples


class ProviderError(Exception):
    """The provider could not answer (unreachable, timeout, HTTP error, malformed answer).

    Not the same as an answer without data, which is no sample at all, or `Sample(value=None, ...)`.
    """


class MetricsProvider(Protocol):
    """Answers one question at a time; bounded in time by itself."""

    async def read(self, query: MetricQuery, settings: ProviderSettings) -> Samples:
        """Value in the preset's unit (share 0..1, seconds, tokens per second) and the samples behind it,
        by variant; a query of the user gives one value under the empty name. Variants without any
        series are left out.

        Raises ProviderError.
        """
        ...
