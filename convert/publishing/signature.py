"""The signature over all files of a release, in OpenSSF's format: model-signing makes and checks it.

What is signed is laid out by links in a folder of its own, so that no name of any other file gets into the signature.
"""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ...graph.errors import InputError, needs_extra
from ...graph.json_text import parse_json
from .names import SIGNATURE_FILE

# Where the password of a private key that has one is taken from: no argument, which other users of a machine could see.
PASSWORD = "LFM_CONVERT_KEY_PASSWORD"
_PURPOSE = "signing, or checking a signature with --key,"


def sign_files(files: Mapping[str, Path | bytes], name: str, key: Path) -> bytes:
    """A signature of files by their path in the release, which is called `name`, with an elliptic private key in PEM.

    Raises: InputError for a key that is none; BackendError without the extra `release`.
    """
    with needs_extra("release", _PURPOSE):
        from model_signing import hashing, signing

    password = os.environ.get(PASSWORD)
    try:
        # model-signing 1.1.1 says that it takes text, and hands it to a function that takes bytes.
        signer = signing.Config().use_elliptic_key_signer(
            private_key=key, password=password.encode() if password else None
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{key}: is no elliptic private key in PEM that opens here: {_first_line(error)}") from None
    with tempfile.TemporaryDirectory(prefix="lfm-convert-sign-") as scratch:
        folder = Path(scratch) / name
        for path, content in files.items():
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                place.write_bytes(content)
            else:
                _link(place, content.resolve())
        # Links are allowed, since a hub's cache consists of them.
        config = hashing.Config().set_allow_symlinks(True).set_ignored_paths(paths=[SIGNATURE_FILE])
        signer.set_hashing_config(config)
        made = Path(scratch) / SIGNATURE_FILE
        signer.sign(folder, made)
        return made.read_bytes()


def signed_files(path: Path) -> dict[str, str]:
    """sha256 by path of what a signature says it is of; not whether it is valid. Raises: InputError if it is none."""
    try:
        envelope = parse_json(path.read_bytes())["dsseEnvelope"]
        predicate = parse_json(base64.b64decode(envelope["payload"], validate=True))["predicate"]
        if predicate["serialization"]["hash_type"] != "sha256":
            raise ValueError(f"hashed by {predicate['serialization']['hash_type']}")
        return {str(each["name"]): str(each["digest"]) for each in predicate["resources"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: is no signature of a model: {error!r:.200}") from None


def refuse_unsigned(folder: Path, key: Path) -> None:
    """Raises InputError unless the signature of a folder is valid and of this public key.

    Of files that differ from those that were signed nothing is said: see `signed_files`.
    """
    with needs_extra("release", _PURPOSE):
        from cryptography.exceptions import InvalidSignature
        from model_signing import verifying

    try:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{key}: is no elliptic public key in PEM: {_first_line(error)}") from None
    path = folder / SIGNATURE_FILE
    try:
        verifier.set_ignore_unsigned_files(True).verify(folder, path)
    except InvalidSignature:
        raise InputError(f"{path}: was changed after it was made: it is not valid for what it says") from None
    except ValueError as error:
        if "Key mismatch" in str(error):
            raise InputError(f"{path}: was made with another key than {key}") from None
        if "Signature mismatch" not in str(error) and "Cannot use" not in str(error):
            raise InputError(f"{path}: {_first_line(error)}") from None
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: is no signature of a model: {error!r}") from None


def _link(place: Path, file: Path) -> None:
    """A link, or a copy where the system gives none to an ordinary user."""
    try:
        place.symlink_to(file)
    except OSError:
        shutil.copyfile(file, place)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().partition("\n")[0]
