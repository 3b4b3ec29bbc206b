"""Trains the sample tokenizer: a small SentencePiece model of Llama's kind, for runs that have no real one at hand.

Byte-fallback BPE, no normalisation, all spaces kept, digits one by one. The model's bytes depend on the texts and the
vocabulary size alone.
"""

import io
from collections import Counter
from collections.abc import Iterable, Iterator

# sentencepiece drops longer lines without a word, so they are cut here. Cut lines only move where pairs are counted.
_MAX_LINE_CHARACTERS = 4096
_MAX_LINE_BYTES = 4 * _MAX_LINE_CHARACTERS
# The trainer drops every line that holds this character, its own mark for the unknown; in the text it stays text.
_RESERVED_CHARACTER = "\u2585"
_NUM_FIXED_PIECES = 3 + 256  # <unk>, <s>, </s> and the bytes
_MIN_VOCAB_SIZE = _NUM_FIXED_PIECES + 5


def train_sample_tokenizer(texts: Iterable[str], *, vocab_size: int) -> bytes:
    """The bytes of a SentencePiece model file trained on the texts, of at most vocab_size pieces.

    Fewer pieces where the texts are too small to give more. About 0.2 s for each MB of text, which is held in memory.
    Raises ValueError where vocab_size is below 264, or where there is no text at all.
    """
    if vocab_size < _MIN_VOCAB_SIZE:
        raise ValueError(f"vocab_size is {vocab_size}; 256 bytes and the control pieces need {_MIN_VOCAB_SIZE}")
    lines = [line for text in texts for line in _cut_lines(text)]
    if not lines:
        raise ValueError("there is no text to train the sample tokenizer on; give it at least one document")
    lines = _drop_rare_characters(lines, max_characters=(vocab_size - _NUM_FIXED_PIECES) // 2)
    return _train(lines, vocab_size=vocab_size)


def _cut_lines(text: str) -> Iterator[str]:
    # At "\n" alone, as Llama's vocabulary has no piece with a line end in it: a line end is a byte piece.
    for line in text.replace(_RESERVED_CHARACTER, " ").split("\n"):
        for start in range(0, len(line), _MAX_LINE_CHARACTERS):
            yield line[start : start + _MAX_LINE_CHARACTERS]


def _drop_rare_characters(lines: list[str], *, max_characters: int) -> list[str]:
    """The lines, cut at characters beyond the most frequent ones; those are left to the byte pieces.

    sentencepiece covers 98% of a text's characters at least, and refuses a vocabulary that cannot hold so many.
    """
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(line)
    rare = sorted(counts, key=lambda character: (-counts[character], character))[max_characters:]
    if not rare:
        return lines
    cut_at_rare = dict.fromkeys(map(ord, rare), "\n")
    return [part for line in lines for part in line.translate(cut_at_rare).split("\n") if part]


def _train(lines: list[str], *, vocab_size: int) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=0.99995,  # Llama's
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        max_sentence_length=_MAX_LINE_BYTES,
        num_threads=1,
        minloglevel=2,  # errors only: its progress is hundreds of lines
    )
    return model.getvalue()
