"""Turns the corpus into rows of token ids of one length, for training and for measuring.

A row of dialogues starts at a dialogue and holds as many whole ones as fit before the cut.
A row of prose or code is a piece of one document, opened by the start token as every prompt of the family is.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import torch

from .corpus import Texts
from .tokenizer import BOS, EOT, render

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ROW_LENGTH = 256
# Share of the rows by kind; the held-out mixture is weighted alike.
MIXTURE = {"dialogues": 0.6, "prose": 0.2, "code": 0.2}

Documents = dict[str, list[list[int]]]


def encode(texts: Texts, tokenizer: Tokenizer) -> Documents:
    """Return the token ids of every document, by kind."""
    plain = {"prose": texts.prose, "code": texts.code}
    documents = {
        kind: [[*each.ids, EOT] for each in tokenizer.encode_batch(list(bodies))] for kind, bodies in plain.items()
    }
    chats = [render(each.messages, tools=each.tools) for each in texts.dialogues]
    # The chat template writes the start token itself.
    encoded = tokenizer.encode_batch(chats, add_special_tokens=False)
    return {"dialogues": [each.ids for each in encoded], **documents}


@dataclass
class Sampler:
    """Draws training rows in the shares of `MIXTURE`."""

    documents: Documents
    rng: Random

    def batch(self, n_rows: int) -> torch.Tensor:
        """Return `[n_rows, ROW_LENGTH]` int64 token ids."""
        kinds = self.rng.choices(list(MIXTURE), weights=list(MIXTURE.values()), k=n_rows)
        return torch.tensor([self._dialogues() if kind == "dialogues" else self._piece(kind) for kind in kinds])

    def _dialogues(self) -> list[int]:
        row: list[int] = []
        while len(row) < ROW_LENGTH:
            row += self.rng.choice(self.documents["dialogues"])
        return row[:ROW_LENGTH]

    def _piece(self, kind: str) -> list[int]:
        """Weigh documents by length, so that every token of the kind is as likely; repeat one shorter than a row."""
        documents = self.documents[kind]
        document = self.rng.choices(documents, weights=[len(each) for each in documents])[0]
        start = self.rng.randrange(max(1, len(document) - ROW_LENGTH))
        row = [BOS, *document[start + 1 : start + ROW_LENGTH]]
        while len(row) < ROW_LENGTH:
            row += document
        return row[:ROW_LENGTH]


def in_order(documents: Documents, kind: str) -> torch.Tensor:
    """Return `[n, ROW_LENGTH]` rows that walk once through the documents of `kind`, laid end to end.

    Each row is opened by the start token; the rest that fills no row is left out.
    """
    stream = [token for document in documents[kind] for token in document]
    step = ROW_LENGTH - 1
    starts = range(0, len(stream) - step + 1, step)
    return torch.tensor([[BOS, *stream[start : start + step]] for start in starts])
