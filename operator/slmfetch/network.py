# SPDX-License-Identifier: Apache-2.0
"""What the requests of one run share."""

from slmfetch.auth import Access, build_access
from slmfetch.config import Settings
from slmfetch.connect import Session


class Network:
    """Credentials, and sessions that the settings shape."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.access: Access = build_access(settings)
        self.session = self.open_session()
        """For the main thread; others open their own."""

    def open_session(self) -> Session:
        """Connections for one thread."""
        return Session(timeout_seconds=self._settings.stall_timeout_seconds, ca_file=self._settings.ca_file)
