"""The tokenizer: byte-level byte-pair encoding (Sennrich et al. 2016; bytes as in GPT-2): no text is unknown."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

EOS = "<|endoftext|>"
EOS_ID = 0
TRAINING_BYTES = 2**30  # of text; in the order of the content hashes, so the first gigabyte is a fair sample


def train_bpe(documents: Iterable[bytes], vocab_size: int, limit: int = TRAINING_BYTES) -> Tokenizer:
    """A tokenizer of at most `vocab_size` entries, EOS and the 256 bytes included, from UTF-8 documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first(documents, limit), trainer)
    return tokenizer


def load(stored: bytes) -> Tokenizer:
    """A stored tokenizer, for documents: an EOS spelt out in a text is text, not an end."""
    tokenizer = Tokenizer.from_str(stored.decode())
    tokenizer.encode_special_tokens = True
    return tokenizer


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Rows that an embedding needs: the highest id + 1, more than there are entries where ids were left out."""
    return int(max(tokenizer.get_vocab().values())) + 1


def to_json(tokenizer: Tokenizer) -> bytes:
    """The stored form, as `tokenizers` and `transformers` read it."""
    return str(tokenizer.to_str(pretty=True)).encode()


def digest(stored: bytes) -> str:
    """SHA-256 of the stored form."""
    return hashlib.sha256(stored).hexdigest()


def _first(documents: Iterable[bytes], limit: int) -> Iterable[str]:
    seen = 0
    for document in documents:
        if seen >= limit:
            return
        seen += len(document)
        yield document.decode()
