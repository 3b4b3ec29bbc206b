"""A task of raw files -> its token files and document table, in one pass over the raw bytes.

Works in Arrow batches and flat arrays; no Python object is made per document. What it writes is in token_file.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import slimpajama
from pipeline.arrival import wait_for_file
from pipeline.contamination import find_contaminated
from pipeline.document_batch import BAD_NAMES, DocumentBatch, text_buffers
from pipeline.documents import read_documents
from pipeline.file_parts import WHOLE, Part
from pipeline.framing import encode_framed, most_framed_ids
from pipeline.freed_memory import keep_freed_memory
from pipeline.jobs import AlmostDone
from pipeline.json_lines import LineFields
from pipeline.kernels import HASH_SEEDS, hash_documents
from pipeline.markers import strip_markers
from pipeline.order import derive_key, scramble
from pipeline.quality_signals import judge
from pipeline.shard import SPLITS
from pipeline.sketch_file import RECIPES, sketch_texts
from pipeline.storage import new_folder
from pipeline.token_file import TokenFile, document_dtype, list_work_files
from pipeline.tokenizer import Tokenizer, load_tokenizer
from pipeline.wanted_documents import WantedDocuments, join_small


@dataclass(frozen=True)
class EncodeSettings:
    """How documents become ids."""

    tokenizer: str
    sha256: str
    engine: str
    document_rule: str
    dtype: str


@dataclass(frozen=True)
class IngestSettings:
    """What decides a source's documents, apart from its raw files. encode: one entry per tokenizer."""

    text_field: str
    subset_field: str | None
    exclude: tuple[str, ...]
    min_chars: int
    valid_fraction: float  # of the documents of train files; 0 where the source has its own validation files
    seed: int
    dedup: str
    encode: tuple[EncodeSettings, ...]
    strip_markers: bool = False  # of starcoder's texts
    contamination: str | None = None  # the folder of evaluation texts' spans, see contamination.py
    rules: tuple[str, ...] = ()  # about quality signals, see signal_rules.py


@dataclass(frozen=True)
class TaskFile:
    """One raw file of a task. number: in the source's sorted list. subset: where its path names one.

    failure: where it is fetched, the file that would say why it does not come; else None.
    signals: the file with its documents' quality signals, where there are rules about them.
    """

    number: int
    path: str
    split: str
    subset: str | None
    part: Part = WHOLE
    failure: str | None = None
    signals: str | None = None

    def wait(self) -> float:
        """Wait until what is fetched of it is there; returns for how many seconds."""
        paths = [Path(path) for path in (self.path, self.signals) if path and self.failure]
        return sum(wait_for_file(path, Path(self.failure)) for path in paths)


@dataclass(frozen=True)
class IngestTask:
    """Some raw files of one source, and where their token file goes."""

    name: str
    source: str
    files: tuple[TaskFile, ...]
    size_bytes: int
    settings: IngestSettings
    folder: str
    fingerprint: str  # of its raw files and the tokenizers

    @property
    def subject(self) -> str:
        """Its raw files, for a person."""
        more = f" to {self.files[-1].path}" if len(self.files) > 1 else ""
        return f"{self.files[0].path}{more}"

    @property
    def num_files(self) -> int:
        """How many raw files the task reads, or begins."""
        return sum(file.part.start == 0 for file in self.files)

    def list_outputs(self, _: Any) -> list[Path]:
        """The work files."""
        return list_work_files(Path(self.folder), len(self.settings.encode))


def run_ingest(task: IngestTask) -> dict[str, Any]:
    """Write a task's token file and tables, whole or not at all, and return its IngestRecord as a dict.

    Beside it `waited_seconds`: for raw files that were still being fetched.

    Raises ValueError naming the raw file where one cannot be read; OSError where the disk refuses.
    """
    return begin_ingest(task).finish()


def begin_ingest(task: IngestTask) -> AlmostDone:
    """The same, but for the wait until the disk has all: then the files get their names, and the record is there."""
    keep_freed_memory()
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(new_folder(Path(task.folder)))
        waited_seconds = sum(file.wait() for file in task.files)
        dtypes = [np.dtype(encode.dtype) for encode in task.settings.encode]
        recipe = RECIPES[task.settings.dedup]
        token_file = stack.enter_context(TokenFile(temporary, dtypes=dtypes, recipe=recipe))
        write_task(task, token_file)
        rest = stack.pop_all()
    return AlmostDone(partial(finish_ingest, rest, token_file, waited_seconds))


def finish_ingest(rest: contextlib.ExitStack, token_file: TokenFile, waited_seconds: float) -> dict[str, Any]:
    """Leave what is open in order: the files are synced, then their folder gets its name."""
    rest.close()
    return {**asdict(token_file.record()), "waited_seconds": waited_seconds}


def write_task(task: IngestTask, token_file: TokenFile) -> None:
    """Read the task's raw files into its token file."""
    batches = (
        keep_wanted(batch, file, task.settings, token_file)
        for file in task.files
        for batch in judge_rows(read_file(file, task.settings), file, task.settings)
    )
    for wanted in join_small(batches):
        ingest_batch(wanted, task.settings, token_file)
        del wanted  # a huge text goes before the next is read
    token_file.write_run()


def judge_rows(batches: Iterator[DocumentBatch], file: TaskFile, settings: IngestSettings) -> Iterator[DocumentBatch]:
    """The batches of a raw file with the rule about quality signals that each document fails, if there are rules."""
    if file.signals is None:
        return batches
    is_whole = file.part == WHOLE
    return judge(batches, Path(file.path), Path(file.signals), settings.rules, is_whole=is_whole)


def read_file(file: TaskFile, settings: IngestSettings) -> Iterator[DocumentBatch]:
    """The batches of one raw file, with its rows' subsets where some are to be excluded; texts as they are kept."""
    for batch in read_rows(file, settings):
        yield change_texts(batch, file, settings)
        del batch  # a huge text goes before the next is read


def read_rows(file: TaskFile, settings: IngestSettings) -> Iterator[DocumentBatch]:
    """The batches of one raw file, texts as they stand in it."""
    fields = choose_fields(file, settings)
    return read_documents(Path(file.path), text_field=fields.text, subset_field=fields.subset, part=file.part)


def choose_fields(file: TaskFile, settings: IngestSettings) -> LineFields:
    """Where the rows of a raw file hold what is to be read of them."""
    is_subset_asked = settings.exclude and file.subset is None
    return LineFields(settings.text_field, settings.subset_field if is_subset_asked else None)


def change_texts(batch: DocumentBatch, file: TaskFile, settings: IngestSettings) -> DocumentBatch:
    """The batch with the texts and subsets that the settings make of it."""
    if settings.strip_markers:
        batch = replace(batch, texts=strip_markers(batch.texts, file.subset))
    if file.subset is not None:
        batch = replace(batch, subsets=pa.repeat(pa.scalar(file.subset), len(batch.rows)))
    if settings.dedup == "slimpajama":
        batch = replace(batch, texts=slimpajama.normalise_texts(batch.texts))
    return batch


def keep_wanted(
    batch: DocumentBatch, file: TaskFile, settings: IngestSettings, token_file: TokenFile
) -> WantedDocuments:
    """The documents to keep of one batch; what is bad, excluded, short or contaminated is written down."""
    token_file.num_rows += batch.num_rows
    for reason in np.unique(batch.bad_rows["reason"]).tolist():
        bad = batch.bad_rows[batch.bad_rows["reason"] == reason]
        token_file.drop(file.number, bad["row"], bad["num_bytes"], reason=BAD_NAMES[reason])
    texts, rows = batch.texts, batch.rows
    num_bytes = pc.binary_length(texts).to_numpy(zero_copy_only=False)
    is_excluded = find_excluded(batch, settings.exclude)
    failed = np.where(is_excluded, 0, find_failed(batch))
    is_excluded |= failed > 0
    if settings.exclude:
        token_file.num_without_subset += len(rows) if batch.subsets is None else batch.subsets.null_count
    is_short = find_short(texts, settings) & ~is_excluded
    if settings.dedup == "slimpajama":
        token_file.add_short(slimpajama.make_keys(texts.filter(pa.array(is_short))))
    token_file.drop(
        file.number, rows[is_excluded], num_bytes[is_excluded], reason="excluded", items=failed[is_excluded]
    )
    token_file.drop(file.number, rows[is_short], num_bytes[is_short], reason="short")
    items = find_contaminated(texts, settings.contamination)
    is_contaminated = (items > 0) & ~(is_excluded | is_short)
    found = rows[is_contaminated], num_bytes[is_contaminated]
    token_file.drop(file.number, *found, reason="contaminated", items=items[is_contaminated])
    is_kept = ~(is_excluded | is_short | is_contaminated)
    if not is_kept.all():
        texts, rows = texts.filter(pa.array(is_kept)), rows[is_kept]
    splits = np.full(len(rows), SPLITS.index(file.split), np.uint8)
    return WantedDocuments(texts, rows, np.full(len(rows), file.number, np.uint32), splits)


def find_short(texts: pa.Array, settings: IngestSettings) -> np.ndarray:
    """Which texts are too short to keep: bool."""
    num_chars = pc.binary_length(texts) if settings.min_chars <= 1 else pc.utf8_length(texts)
    is_short = num_chars.to_numpy(zero_copy_only=False) < max(settings.min_chars, 1)
    return is_short | slimpajama.CleanTexts.of(texts).is_short if settings.dedup == "slimpajama" else is_short


def find_excluded(batch: DocumentBatch, exclude: tuple[str, ...]) -> np.ndarray:
    """Which documents are of an excluded subset: bool. A document that names no subset is not."""
    if batch.subsets is None or not exclude:
        return np.zeros(len(batch.texts), bool)
    return pc.is_in(batch.subsets, pa.array(exclude)).to_numpy(zero_copy_only=False)


def find_failed(batch: DocumentBatch) -> np.ndarray:
    """1 + the number of the rule about its quality that each document fails, 0: none: uint32."""
    return np.zeros(len(batch.rows), np.uint32) if batch.failed is None else batch.failed


def ingest_batch(wanted: WantedDocuments, settings: IngestSettings, token_file: TokenFile) -> None:
    """Hash, tokenise and frame some documents."""
    if not len(wanted.rows):
        return
    data, offsets = text_buffers(wanted.texts)
    hashes = hash_documents(data, offsets, np.array(HASH_SEEDS))
    documents = np.zeros(len(wanted.rows), document_dtype(len(settings.encode)))
    documents["place"] = find_places(hashes, seed=settings.seed)
    documents["content_hash"], documents["row"], documents["raw_file"] = hashes, wanted.rows, wanted.raw_files
    documents["num_bytes"] = np.diff(offsets)
    ids = []
    for number, room in enumerate(token_file.reserve(most_framed_ids(offsets))):
        framed, documents["num_tokens"][:, number] = encode_texts(data, offsets, settings.encode[number], room)
        ids.append(framed)
    splits = choose_splits(hashes, wanted.splits, settings.valid_fraction)
    token_file.add(documents, splits, ids, sketch_texts(wanted.texts, method=settings.dedup))


def find_places(hashes: np.ndarray, *, seed: int) -> np.ndarray:
    """Where in the order each document stands, by its content and the seed alone: uint64."""
    return scramble(hashes[:, 0] ^ np.uint64(derive_key("place", seed)))


def encode_texts(
    data: np.ndarray, offsets: np.ndarray, settings: EncodeSettings, room: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The framed ids of some documents, in `room` if they fit, and how many each has."""
    tokenizer = open_tokenizer(settings.tokenizer, settings.sha256, settings.engine)
    return encode_framed(tokenizer, data, offsets, document_rule=settings.document_rule, room=room)


@cache  # one of each tokenizer per process: its caches make it fast
def open_tokenizer(path: str, sha256: str, engine: str) -> Tokenizer:
    """The tokenizer of this worker process."""
    return load_tokenizer(path, engine=engine, sha256=sha256)


def choose_splits(hashes: np.ndarray, splits: np.ndarray, valid_fraction: float) -> np.ndarray:
    """The split of each document, as an index into SPLITS, from its raw file's split.

    A train file gives `valid_fraction` of its documents to validation, by their content alone: the same text is always
    in the same split, and a larger fraction takes more documents, never others.
    """
    draws = scramble(hashes[:, 0] ^ np.uint64(derive_key("split"))) >> np.uint64(11)
    is_drawn = (draws < np.uint64(valid_fraction * 2**53)) & (splits == SPLITS.index("train"))
    return np.where(is_drawn, np.uint8(SPLITS.index("validation")), splits)
