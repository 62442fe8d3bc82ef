# SPDX-License-Identifier: Apache-2.0
"""Port to a metrics provider."""

from typing import Protocol

from slmops.model.observed import MetricQuery, Sample


class ProviderError(Exception):
    """The provider could not answer (unreachable, timeout, HTTP error, malformed answer).

    Not the same as an answer without data, which is `Sample(value=None, ...)`.
    """


class MetricsProvider(Protocol):
    """Answers one question at a time; bounded in time by itself."""

    async def read(self, query: MetricQuery) -> Sample:
        """Value in the preset's unit (share 0..1, seconds) and the number of samples behind it.

        Raises ProviderError.
        """
        ...
