# SPDX-License-Identifier: Apache-2.0
"""OpenSSF model signatures, verified with the model-signing library: keys given, no network."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from slmwire.manifest import Manifest

if TYPE_CHECKING:
    from model_signing.manifest import Manifest as SignedManifest

MAX_SIGNATURE_BYTES: Final = 128 << 10


class SignatureError(Exception):
    """The signature does not hold; the message says why, and what to do."""


def verify_signature(text: str, *, manifest: Manifest, file: str, public_keys: Sequence[str]) -> str:
    """Fingerprint (`sha256:<hex>` of the key's PEM) of the key that signed exactly these files.

    `text` is a Sigstore bundle made by `model_signing sign key`. Each file of the manifest must be in
    the signed statement with its sha256 and the other way round, but for `file`, the signature itself.
    Raises SignatureError. Blocks for about a second the first time, when the library is imported.
    """
    if len(text.encode()) > MAX_SIGNATURE_BYTES:
        raise SignatureError(f"the signature is larger than {MAX_SIGNATURE_BYTES} bytes")
    strangers = 0
    for index, key in enumerate(public_keys):
        with _as_path(key) as key_path, _as_path(text) as signature_path:
            verifier = _build_verifier(index, key_path, manifest, file)
            try:
                verifier.verify(Path("model"), signature_path)
            except _Differs as error:
                raise SignatureError(
                    f"the signature is of other files: {error}; sign the files as they are published, all of "
                    "them, by whole files with sha256 (the default of model_signing)"
                ) from error
            except Exception as error:
                if not _is_other_key(error):
                    raise SignatureError(
                        f"the signature cannot be read ({type(error).__name__}: {str(error)[:200]}); make it "
                        "with model_signing sign key"
                    ) from error
                strangers += 1
                continue
            return fingerprint_of(key)
    raise SignatureError(
        f"none of the {strangers} key(s) in spec.model.signature.publicKeys made the signature; sign with "
        "one of them, or add the key that was used"
    )


def fingerprint_of(key: str) -> str:
    """Name of a public key in messages."""
    return "sha256:" + hashlib.sha256(key.strip().encode()).hexdigest()


class _Differs(Exception):
    """What was signed is not what there is."""


def _build_verifier(index: int, key_path: Path, manifest: Manifest, file: str) -> Any:
    # Imported when needed: with its dependencies it weighs more than the rest of the operator.
    from model_signing import verifying

    try:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=key_path)
    except Exception as error:
        raise SignatureError(
            f"spec.model.signature.publicKeys[{index}] is no elliptic-curve key in PEM (P-256, P-384 or "
            f"P-521): {str(error)[:200]}"
        ) from error
    return verifier.set_hashing_config(_build_known_hashes(manifest, file))


def _build_known_hashes(manifest: Manifest, file: str) -> Any:
    """A hashing configuration of the library that knows the hashes already: the model is not here."""
    from model_signing import hashing
    from model_signing._hashing.hashing import Digest
    from model_signing.manifest import FileManifestItem, SerializationType
    from model_signing.manifest import Manifest as SignedManifest

    class Compared(SignedManifest):  # type: ignore[misc]
        """Says what differs in few words."""

        def __eq__(self, other: object) -> bool:
            assert isinstance(other, SignedManifest)
            _compare(self, other)
            return True

        __hash__ = None  # type: ignore[assignment]

    class Known(hashing.Config):  # type: ignore[misc]
        def add_ignored_paths(self, **_: Any) -> None:
            """Nothing but the signature may be left out."""

        def hash(self, model_path: Any, **_: Any) -> "SignedManifest":
            items = [
                FileManifestItem(path=Path(entry.path), digest=Digest("sha256", bytes.fromhex(entry.sha256)))
                for entry in manifest.files
                if entry.path != file
            ]
            arguments = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
            return Compared("model", items, SerializationType.from_args(arguments))

    return Known()


def _compare(actual: "SignedManifest", signed: "SignedManifest") -> None:
    here, there = (
        {d.identifier: (d.digest.algorithm, d.digest.digest_hex) for d in m.resource_descriptors()}
        for m in (actual, signed)
    )
    findings = [
        *(f"{path} is not signed" for path in sorted(here.keys() - there.keys())),
        *(f"{path} is signed and missing" for path in sorted(there.keys() - here.keys())),
        *(
            f"{path} has other content"
            for path in sorted(here.keys() & there.keys())
            if here[path] != there[path]
        ),
    ]
    if findings:
        more = f" and {len(findings) - 5} more" if len(findings) > 5 else ""
        raise _Differs(", ".join(findings[:5]) + more)


def _is_other_key(error: Exception) -> bool:
    from cryptography.exceptions import InvalidSignature

    return isinstance(error, InvalidSignature) or str(error).startswith("Key mismatch")


@contextmanager
def _as_path(text: str) -> Iterator[Path]:
    """The text as a file, which the library wants; in memory, as the container has no writable disk."""
    descriptor = os.memfd_create("slmops-signature")
    try:
        os.write(descriptor, text.encode())
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
