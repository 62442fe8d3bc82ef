# SPDX-License-Identifier: Apache-2.0
"""What the requests of one run share."""

from typing import Final

from slmfetch.auth import Access, build_access
from slmfetch.config import Settings
from slmfetch.connect import Session
from slmfetch.pace import Pace

MIN_BUFFER_BYTES: Final = 64 << 10
MAX_BUFFER_BYTES: Final = 1 << 20


class Network:
    """Credentials, the limit on bandwidth, and sessions that the settings shape."""

    def __init__(self, settings: Settings, pace: Pace) -> None:
        self._settings = settings
        self.pace = pace
        self.access: Access = build_access(settings)
        self.session = self.open_session()
        """For the main thread; others open their own."""

    def open_session(self) -> Session:
        """Connections for one thread.

        Under a limit the kernel takes little in advance: it would be lost with a killed process.
        """
        rate = self.pace.rate()
        buffer = min(max(rate // 4, MIN_BUFFER_BYTES), MAX_BUFFER_BYTES) if rate else 0
        return Session(
            timeout_seconds=self._settings.stall_timeout_seconds,
            ca_file=self._settings.ca_file,
            receive_buffer_bytes=buffer,
        )
