# SPDX-License-Identifier: Apache-2.0
"""The server's certificate, replaced while it serves."""

import logging
import ssl

from slmserve.config import TlsFiles
from slmserve.errors import StartError
from slmserve.watched import observe_stamp
from slmwire.reasons import Reason

_log = logging.getLogger(__name__)


class TlsIdentity:
    """Certificate and key in an SSL context, TLS 1.2 or later; raises StartError when unusable."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._stamps = self._observe()
        self._refused: tuple[object, object] | None = None
        """Of a pair that cannot be used, so that the log says it once."""
        try:
            self.context = _build_context(files)
        except (OSError, ValueError) as error:
            message = f"the TLS files {files.certificate} and {files.key} cannot be used: {_explain(error)}"
            raise StartError(Reason.UNFIT, message) from error

    def refresh(self) -> bool:
        """Take a pair of files that has changed; a bad pair leaves the one before it in use.

        Connections that exist keep theirs. Returns whether another pair is in use now.
        """
        stamps = self._observe()
        if None in stamps or stamps == self._stamps:
            return False
        try:
            # A pair that does not fit together would spoil the context that is in use.
            _build_context(self._files)
            self.context.load_cert_chain(self._files.certificate, self._files.key, password=_no_password)
        except (OSError, ValueError) as error:
            if stamps != self._refused:
                _log.warning("the new TLS files cannot be used: %s", _explain(error))
            self._refused = stamps
            return False
        self._stamps = stamps
        _log.info("TLS certificate read again")
        return True

    def _observe(self) -> tuple[object, object]:
        return observe_stamp(self._files.certificate), observe_stamp(self._files.key)


def _build_context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(files.certificate, files.key, password=_no_password)
    return context


def _no_password() -> str:
    # Without this OpenSSL would ask on the terminal, and wait.
    raise ValueError("the key is encrypted; store it without a password")


def _explain(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return str(error.reason or "not PEM").lower().replace("_", " ")
    return error.strerror or "unreadable" if isinstance(error, OSError) else str(error)
