"""Tokenizers by name or path: load_tokenizer, and what it gives.

    tokenizer = load_tokenizer("llama2", engine="fast", notice=print)
    ids, id_offsets = tokenizer.encode_documents(data, offsets)

Text becomes ordinary ids and nothing else: no text can spell a control id, and whoever writes documents adds bos and
eos by `document_rule`. Imported by training too, so nothing but the standard library and numpy is imported here; the
tokenizer libraries are imported when a tokenizer is loaded. With engine="reference" that is only its family's own.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.tokenizer_engines import Engine, FindCut, NotServedError, ReferenceEngine, TokenizerFile
from pipeline.tokenizer_files import find_tokenizer_file
from pipeline.tokenizer_json import read_tokenizer_json
from pipeline.tokenizer_pieces import Stretch, encode_stretches, join_stretches
from pipeline.tokenizer_ranks import read_ranks
from pipeline.tokenizer_sentencepiece import read_sentencepiece

ENGINES = ("fast", "reference")

# What has ever told two encoders apart, compared at load, id for id. The last line holds letters and digits that
# Unicode 14, 15 and 16 added, before an apostrophe, so that an engine with older tables is noticed.
_HARD_TEXTS = (
    "Hello, world! It's 1,234.56 - they'll've DON'T we'RE 'tis 's",
    "<s>[INST] </s> <unk> <pad> <|endoftext|> <|im_start|> <0x0A> <0xFF>",
    "  leading\t\ttabs \r\n\r\nCRLF\rCR \x00NUL\x0b\x0c\x85\xa0\u2028\u3000 trailing   ",
    "\n".join(" " * num_spaces for num_spaces in range(24)) + " " * 300 + "x",
    "\u2581U+2581\u2581\u2581 \u2581",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308 \U0001f1e9\U0001f1ea",
    "e\u0301 \u0e01\u0e33 \u0928\u093f \u1e9b\u0323 \ufb01 \u212b \xbd \u2460 \u0663 \ufeff \ufffd",
    "中文字符 日本語テスト 한국어 Русский العربية ไทย हिन्दी",
    "def f(x):\n    return {'a': x[1:], \"b\": 0x1F}  # !!!===>>>\n\n\n\tif a!=b: pass;;\n",
    "a" * 300 + "0" * 50 + "-" * 100 + "=" * 77 + "ab" * 60,
    "\u1c89's \ua7cb'd \U000105c0'll \U00011bf0's \U0002ebf0't \U00031350're \U0001e4d0's \u0c5d'm",
)


@dataclass(frozen=True)
class Tokenizer:
    """A loaded tokenizer. `engine` is the one that really serves: fast, or reference where fast would not be exact."""

    name: str
    path: Path
    sha256: str
    family: str  # sentencepiece, tiktoken or huggingface
    vocab_size: int
    bos_id: int | None
    eos_id: int
    document_rule: str  # what the family does at inference: bos+eos or eos
    engine: str
    _engine: Engine = field(repr=False)
    _reference: ReferenceEngine = field(repr=False)
    _find_cut: FindCut | None = field(repr=False)

    def encode_documents(self, data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The documents' ids: flat uint32, and int64 offsets (n + 1, from 0). No bos or eos.

        data: the texts' UTF-8 bytes, uint8, already known to be valid. offsets: int64, n + 1, ascending; the first may
        be above 0. With the fast engine no Python object is made per document.

        >>> tokenizer.encode_documents(np.frombuffer(b"HelloHi", np.uint8), np.array([0, 5, 7]))
        (array([15043, 6324], dtype=uint32), array([0, 1, 2]))
        """
        return join_stretches(self.encode_stretches(data, offsets), num_documents=len(offsets) - 1)

    def encode_stretches(self, data: np.ndarray, offsets: np.ndarray) -> Iterator[Stretch]:
        """The same ids a stretch at a time, so that no more than a few MB of text are worked on at once."""
        if self.can_frame:  # it takes little memory, whatever the size of the documents
            return iter([Stretch(*self._engine.encode_documents(data, offsets), 0, True)])
        return encode_stretches(self._engine, self._find_cut, data, offsets)

    @property
    def can_frame(self) -> bool:
        """Whether encode_and_frame may be called: with our own engine."""
        return hasattr(self._engine, "encode_and_frame")

    def encode_and_frame(
        self, data: np.ndarray, offsets: np.ndarray, *, bos_id: int, eos_id: int, room: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The documents' ids back to back with bos and eos (unless negative) around each, in the dtype of a dataset of
        this vocabulary, and where each document ends, int64. The same buffers as encode_documents takes. The ids lie in
        `room` where that is certain to be enough."""
        return self._engine.encode_and_frame(data, offsets, bos_id=bos_id, eos_id=eos_id, room=room)

    def encode(self, text: str) -> list[int]:
        """The ids of one text, no bos or eos. Raises ValueError for a lone surrogate, which is not text."""
        try:
            data = np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
        except UnicodeEncodeError as error:
            raise ValueError(
                f"lone surrogate {text[error.start]!r} at character {error.start}: not a Unicode text"
            ) from None
        return self.encode_documents(data, np.array([0, len(data)], dtype=np.int64))[0].tolist()

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes that the ids stand for; control ids stand for none. Part of a character stays part of one, except
        for a tokenizer.json, whose own decoder puts U+FFFD for it."""
        return self._reference.decode_bytes([int(id_) for id_ in ids])

    def decode_documents(self, ids: np.ndarray, id_offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The documents' bytes, flat uint8, and their offsets, int64, from 0: what encode_documents took.

        ids: uint16 or uint32; id_offsets: int64, n + 1, ascending. With our own engine no Python object is made per
        document; otherwise decode_bytes is called for each.
        """
        if self.can_frame:
            return self._engine.decode_documents(ids, id_offsets)
        bounds = zip(id_offsets[:-1].tolist(), id_offsets[1:].tolist(), strict=True)
        texts = [self.decode_bytes(ids[start:end]) for start, end in bounds]
        return np.frombuffer(b"".join(texts), np.uint8), np.cumsum([0, *map(len, texts)], dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """The text that the ids stand for, with U+FFFD for bytes that are no character."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


def load_tokenizer(
    name_or_path: str | Path,
    *,
    engine: str = "fast",
    sha256: str | None = None,
    notice: Callable[[str], object] | None = None,
) -> Tokenizer:
    """The tokenizer of that name (data_manifests/tokenizers.toml), or in that file or folder.

    A named tokenizer's sha256 is always checked, and `sha256` as well where given. The fast engine is compared with the
    reference on hard texts; where it cannot serve at all, the reference serves and `notice` is told why.
    Raises ValueError or FileNotFoundError in one line that names the file and says what to do.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}; it is one of {', '.join(ENGINES)}")
    notice = notice or (lambda message: None)
    name, path, data = find_tokenizer_file(name_or_path, sha256=sha256, notice=notice)
    file = _read_tokenizer_file(path, data)
    for message in file.notices:
        notice(message)
    fast = _open_fast(file, path=path, notice=notice) if engine == "fast" else None
    _probe(file, fast, path=path)
    return Tokenizer(
        name=name,
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        family=file.family,
        vocab_size=file.vocab_size,
        bos_id=file.bos_id,
        eos_id=file.eos_id,
        document_rule=file.document_rule,
        engine="reference" if fast is None else "fast",
        _engine=fast or file.reference,
        _reference=file.reference,
        _find_cut=file.find_cut,
    )


def _read_tokenizer_file(path: Path, data: bytes) -> TokenizerFile:
    readers = {".model": read_sentencepiece, ".tiktoken": read_ranks, ".json": read_tokenizer_json}
    if path.suffix not in readers:
        raise ValueError(f"{path}: a tokenizer file ends in {', '.join(readers)}; rename it to what it is")
    return readers[path.suffix](path, data)


def _open_fast(file: TokenizerFile, *, path: Path, notice: Callable[[str], object]) -> Engine | None:
    try:
        return file.open_fast()
    except ImportError as error:
        notice(f"tokenizer {path}: the reference engine serves, since {error.name} is not installed here")
    except NotServedError as error:
        notice(f"tokenizer {path}: the reference engine serves, since the fast one would not be exact: {error}")
    except BaseException as error:
        # gigatoken's own refusals; a Rust panic derives from BaseException alone, and its class cannot be imported
        if not isinstance(error, (RuntimeError, ValueError)) and type(error).__name__ != "PanicException":
            raise
        first_line = str(error).splitlines()[0]
        notice(f"tokenizer {path}: the reference engine serves, since gigatoken refuses the file: {first_line}")
    return None


def _probe(file: TokenizerFile, fast: Engine | None, *, path: Path) -> None:
    texts = (*_HARD_TEXTS, *(f"{text}\n{text}\n" for text in file.control_texts if text))
    data = np.frombuffer("".join(texts).encode(), dtype=np.uint8)
    offsets = np.cumsum([0, *(len(text.encode()) for text in texts)], dtype=np.int64)
    ids, id_offsets = file.reference.encode_documents(data, offsets)
    fast_ids, fast_offsets = fast.encode_documents(data, offsets) if fast else (ids, id_offsets)
    for document, text in enumerate(texts):
        expected = ids[id_offsets[document] : id_offsets[document + 1]]
        found = fast_ids[fast_offsets[document] : fast_offsets[document + 1]]
        if not np.array_equal(expected, found):
            raise ValueError(
                f"{path}: the fast engine does not encode {text[:40]!r} as the reference does; use --engine reference"
            )
        if np.isin(expected, [file.eos_id, -1 if file.bos_id is None else file.bos_id]).any():
            raise ValueError(f"{path}: the text {text[:40]!r} becomes a control id; the tokenizer is not usable")
