"""The files of a repository that are no artifact's, by name."""

from __future__ import annotations

CARD_FILE = "README.md"
SBOM_FILE = "sbom.cdx.json"
STATEMENT_FILE = "provenance.intoto.json"
SIGNATURE_FILE = "model.sig"
# What `sign` adds to a folder, in the order in which one covers the other.
PROOFS = (SBOM_FILE, STATEMENT_FILE, SIGNATURE_FILE)
# What a hub puts into a repository by itself, and git keeps beside it.
HUB_FILES = (".gitattributes", ".gitignore")
