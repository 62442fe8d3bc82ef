# SPDX-License-Identifier: Apache-2.0
"""Signs a model directory in the form of the OpenSSF model-signing library, which the operator verifies."""

import base64
import json
from pathlib import Path
from typing import Any

from slmopt.errors import OptimizeError
from slmopt.model_dir import SIGNATURE_FILE
from slmwire.paths import MODEL_MANIFEST_FILE
from slmwire.reasons import Reason


def sign_model(directory: Path, key: Path) -> Path:
    """Write `model.sig` over every file of `directory` but itself and slm-manifest.json; its path.

    `key` is an elliptic-curve private key in PEM without a password. Raises OptimizeError. The signature
    is deterministic (RFC 6979): the same files and key give the same bytes, so that publishing again
    changes nothing.
    """
    try:
        # Imported when needed: with what it needs it takes a second.
        from cryptography.hazmat.primitives.asymmetric import ec
        from model_signing import hashing
        from model_signing._signing import sign_ec_key, sign_sigstore_pb, signing
    except ImportError as error:
        raise OptimizeError(
            Reason.UNFIT, f"sign needs the library model-signing ({error}); install slmops[optimizer]"
        ) from error
    try:
        signer = sign_ec_key.Signer(key)
    except OSError as error:
        raise OptimizeError(
            Reason.SIGNATURE_INVALID,
            f"sign: the key {key} cannot be read ({error.strerror}); mount the Secret",
        ) from error
    except Exception as error:
        raise OptimizeError(
            Reason.SIGNATURE_INVALID,
            "sign: the key is no elliptic-curve private key in PEM (P-256, P-384 or P-521): "
            f"{str(error)[:200]}",
        ) from error
    private: Any = signer._private_key
    path = directory / SIGNATURE_FILE
    ignored = [path, directory / MODEL_MANIFEST_FILE]
    config = hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=False)
    bundle = json.loads(signer.sign(signing.Payload(config.hash(directory))).bundle.to_json())
    envelope = bundle["dsseEnvelope"]
    # The statement lists what it ignores in the order of a set, which changes from process to process.
    statement = json.loads(base64.b64decode(envelope["payload"]))
    statement["predicate"]["serialization"]["ignore_paths"].sort()
    payload = json.dumps(statement, indent=2).encode()
    hashed = sign_ec_key.get_ec_key_hash(private.public_key())
    algorithm = ec.ECDSA(hashed, deterministic_signing=True)
    signature = private.sign(sign_sigstore_pb.pae(payload), algorithm)
    envelope["payload"] = base64.b64encode(payload).decode()
    envelope["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    path.write_text(json.dumps(bundle))
    return path
