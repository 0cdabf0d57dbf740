"""Pairs of elliptic keys for signatures, as `openssl ecparam -name prime256v1 -genkey` makes them."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec


def make_key(path: Path, password: str = "") -> None:
    """Writes `path`.pem, the private key, and `path`.pub."""
    key = ec.generate_private_key(ec.SECP256R1())
    kept = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, kept)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pem").write_bytes(private)
    path.with_suffix(".pub").write_bytes(public)
