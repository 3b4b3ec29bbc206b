"""tiktoken rank files of GPT-2's kind: read and checked.

A rank file lists byte strings by merge rank and nothing else: how text is split into words, and the end-of-text token,
live in the code that reads it. Here that is GPT-2's rule.
"""

import base64
import binascii
import hashlib
from pathlib import Path
from typing import Any

from pipeline.tokenizer_engines import FastEngine, ReferenceEngine, TokenizerFile
from pipeline.tokenizer_pieces import find_gpt2_cut

END_OF_TEXT = "<|endoftext|>"

# Rank files do not say how text is split into words. Those of other encodings are told by their hash, so that they are
# never read with GPT-2's rule.
_GPT2_RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
_GPT2_FIRST_LINES_SHA256 = "7e8ba4cca7e1673012d0d9665c01827d5888d51172af0781947f618b06dd3fc8"  # the first 1,000 lines
_OTHER_RANKS_SHA256 = {
    "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069": "p50k_base",
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7": "cl100k_base",
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d": "o200k_base",
}


def read_ranks(path: Path, data: bytes) -> TokenizerFile:
    """A tiktoken rank file of GPT-2's kind; the end-of-text id is the one after the last rank."""
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 in _OTHER_RANKS_SHA256:
        raise ValueError(
            f"{path}: {_OTHER_RANKS_SHA256[sha256]} splits text otherwise than GPT-2, the one rule known for rank "
            "files; use its tokenizer.json"
        )
    ranks = _parse_ranks(path, data)
    if sha256 != _GPT2_RANKS_SHA256 and _begins_like_gpt2(data):
        raise ValueError(
            f"{path}: begins like GPT-2's ranks but is not that file (sha256 {sha256}): it is cut or changed; fetch it "
            "again, or use --tokenizer gpt2"
        )
    eos_id = len(ranks)
    encoding = _build_tiktoken(path, ranks)
    reference = ReferenceEngine(
        encode_text=encoding.encode_ordinary,
        decode_bytes=lambda ids: encoding.decode_bytes([id_ for id_ in ids if id_ != eos_id]),
    )
    is_gpt2 = sha256 == _GPT2_RANKS_SHA256
    return TokenizerFile(
        family="tiktoken",
        vocab_size=eos_id + 1,
        bos_id=None,
        eos_id=eos_id,
        document_rule="eos",
        control_texts=(END_OF_TEXT,),
        reference=reference,
        open_fast=lambda: _open_fast_ranks(path, reference),
        find_cut=find_gpt2_cut,
        notices=() if is_gpt2 else (f"{path}: a rank file does not say how text is split; GPT-2's rule is used",),
    )


def _begins_like_gpt2(data: bytes) -> bool:
    first_lines = b"\n".join(data.split(b"\n", 1000)[:1000])
    return hashlib.sha256(first_lines).hexdigest() == _GPT2_FIRST_LINES_SHA256


def _build_tiktoken(path: Path, ranks: dict[bytes, int]) -> Any:  # noqa: ANN401
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    try:
        return tiktoken.Encoding(
            path.stem, pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)}
        )
    except ValueError as error:
        raise ValueError(f"{path}: tiktoken refuses the ranks: {error}") from None


def _parse_ranks(path: Path, data: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(
                f"{path}, line {number}: not `base64 rank` but {line[:40]!r}: not a rank file, or cut; fetch it again"
            ) from None
    if sorted(ranks.values()) != list(range(len(ranks))) or not all(bytes([byte]) in ranks for byte in range(256)):
        raise ValueError(f"{path}: the {len(ranks):,} ranks leave gaps or lack single bytes; fetch the file again")
    return ranks


def _open_fast_ranks(path: Path, reference: ReferenceEngine) -> FastEngine:
    import gigatoken

    return FastEngine(
        lambda: gigatoken.Tokenizer.from_tiktoken(path, pretokenizer="gpt2", special_tokens={}), routed_to=reference
    )
