"""Compare a dataset with the raw files that it was built from: every row accounted for, the ids encoded again.

The reference engine encodes, document by document; what the build's own engine made must be the same, id for id. Holds
one batch of a raw file, what the dataset says of its rows (see verify_rows.py), and maps of OPEN_SHARDS shards.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.document_batch import BAD_NAMES, ROW_BITS, DocumentBatch, key_rows
from pipeline.file_parts import WHOLE
from pipeline.ingest import IngestSettings, TaskFile, change_texts, find_places, judge_rows, read_rows
from pipeline.ingest_plan import make_task_file
from pipeline.manifest import RawFile, find_subset
from pipeline.order import derive_key, scramble
from pipeline.plan import PlannedSource, hash_texts
from pipeline.quality_signals import attach_signals
from pipeline.sample_record import is_sample
from pipeline.shard import SPLITS, open_document_ends, open_tokens
from pipeline.token_file import DROP_REASONS
from pipeline.tokenizer import Tokenizer, load_tokenizer
from pipeline.verify_documents import NO_REASON, Documents, describe_documents, ingest_settings
from pipeline.verify_lines import verify_lines
from pipeline.verify_rows import SourceRows, look_up, open_rows, verify_rows
from pipeline.verify_shard import places_of, read_documents_table
from pipeline.verify_source import ROW_MASK, ClaimedSource

KINDS = {"excluded": "of an excluded subset", "contaminated": "contaminated"}
OPEN_SHARDS = 200  # two files each; a process may often have 1,024 open


def verify_raw_files(
    folder: Path,
    content: Mapping[str, Any],
    *,
    raw: Path,
    fraction: float,
    seed: int,
    contamination: str | None,
    notice: Callable[[str], object] | None = None,
) -> Iterator[str]:
    """What in the raw files disagrees with a dataset that is all right in itself, one text each.

    raw: the folder with a folder per source. fraction: the share of documents whose ids are made again, chosen by seed;
    that each row is accounted for, with the same text, is checked for all. contamination: the folder of the spans of
    evaluation texts; None: contaminated documents are not looked at. `notice` is told when a source is done.
    Raises ValueError or OSError for a raw file that is missing or cannot be read.
    """
    claims = content["tokenizer"]
    tokenizer = load_tokenizer(folder / claims["file"], engine="reference", sha256=claims["sha256"])
    if content["sample"] != is_sample(raw):
        yield f"{raw}: its sample.json, or that it has none, is not what sample in dataset.json says"
    with open_rows(folder, content) as rows:
        yield from verify_rows(rows)
        for of_source in rows:
            started = time.monotonic()
            settings = replace(ingest_settings(of_source.source, content), contamination=contamination)
            check = SourceCheck(
                folder, content, of_source, tokenizer, settings, fraction=fraction, key=derive_key("verify", seed)
            )
            yield from check.verify(raw / of_source.source.name)
            if notice:
                files, seconds = f"{of_source.source.num_raw_files:>6,} files ", time.monotonic() - started
                notice(f"raw     {check.source.name:12} {files}  {check.num_rows:>13,} rows       {seconds:.1f} s")


class SourceCheck:
    """Checks the raw files of one source, batch by batch."""

    def __init__(
        self,
        folder: Path,
        content: Mapping[str, Any],
        rows: SourceRows,
        tokenizer: Tokenizer,
        settings: IngestSettings,
        *,
        fraction: float,
        key: int,
    ):
        self.folder, self.content, self.rows, self.tokenizer = folder, content, rows, tokenizer
        self.source: ClaimedSource = rows.source
        self.fraction, self.key, self.settings = fraction, np.uint64(key), settings
        self.dtype = np.dtype(content["dtype"]).newbyteorder("<")
        self.reasons = (*DROP_REASONS, *settings.rules)
        self.kinds = {**KINDS, **{rule: f"one that fails {rule}" for rule in settings.rules}}
        self.unseen = ("duplicate_near", *(["contaminated"] if settings.contamination is None else []))
        self.num_rows = self.num_kept_bytes = 0
        self.open_shard = functools.lru_cache(maxsize=OPEN_SHARDS)(self._open_shard)

    def _open_shard(self, number: int) -> tuple[Path, np.ndarray, np.ndarray]:
        _, shard = self.source.shards[number]
        path = self.folder / shard["path"]
        tokens = open_tokens(path, dtype=self.dtype, num_tokens=shard["tokens"])
        return path, tokens, open_document_ends(path, num_documents=shard["documents"])

    def verify(self, raw: Path) -> Iterator[str]:
        """What is wrong with the source's raw files, in the folder `raw`."""
        paths = self.source.entry["raw_files"]
        missing = [path for path in paths if not (raw / path).is_file()]
        if missing:
            more = f", and so are {len(missing) - 1:,} more raw files" if len(missing) > 1 else ""
            yield f"{raw / missing[0]} is missing{more}: dataset.json lists what the build read"
            return
        splits = [SPLITS[index] for index in self.source.file_splits]
        files = tuple(
            RawFile(path, split, (raw / path).stat().st_size, find_subset(path, self.source.source))
            for path, split in zip(paths, splits, strict=True)
        )
        if self.settings.rules:
            files = attach_signals(files, lambda path: (raw / path).is_file())
        planned = PlannedSource(self.source.source, raw, self.settings.exclude, Fraction(0), files)
        if hash_texts(planned.fingerprints) != self.source.settings["raw_files"][self.source.name]:
            yield f"{raw}: the raw files are not those of which settings.raw_files holds the digest"
        for number in range(len(files)):
            yield from self.verify_file(make_task_file(planned, number, WHOLE.start, WHOLE.end))
        claimed = self.source.entry["counts"]["kept"]["bytes"]
        if (found := self.num_kept_bytes) != claimed:
            yield f"{self.source.name}: the documents kept have {found:,} bytes, dataset.json says {claimed:,}"

    def verify_file(self, file: TaskFile) -> Iterator[str]:
        """What is wrong with the rows of one raw file. Each row that it has is listed, and no other."""
        base = file.number << ROW_BITS
        first = base
        batches = judge_rows(read_rows(file, self.settings), file, self.settings)
        text_field = self.settings.text_field
        for rows, problems in verify_lines(Path(file.path), batches, text_field=text_field, choose=self.choose):
            yield from problems
            batch = change_texts(rows, file, self.settings)
            found = np.union1d(batch.rows, batch.bad_rows["row"])
            if not len(found):
                continue
            last = base + int(found[-1]) + 1
            kept, dropped = self.rows.kept.read(first, last), self.rows.dropped.read(first, last)
            first = last
            self.num_rows += len(found)
            listed = np.union1d(kept["key"], dropped["key"]) - np.uint64(base)
            for row in np.setdiff1d(found, listed).tolist():
                yield f"{file.path} row {row}: neither in a shard nor in drops/"
            for row in np.setdiff1d(listed, found).tolist():
                yield f"{file.path} row {row}: in a shard or in drops/, but the file has no such row"
            yield from self.verify_bad_rows(batch.bad_rows, dropped, file)
            if len(batch.rows):
                yield from self.verify_documents(batch, kept, dropped, file)
        end = base + (1 << ROW_BITS)
        num_more = self.rows.kept.count(first, end) + self.rows.dropped.count(first, end)
        if num_more:
            yield f"{file.path}: ends before row {first - base:,}, but {num_more:,} more rows are in shards or drops/"

    def verify_bad_rows(self, bad_rows: np.ndarray, dropped: np.ndarray, file: TaskFile) -> Iterator[str]:
        """That each bad row is listed, with its reason and size."""
        keys = key_rows(file.number, bad_rows["row"])
        at, is_dropped = look_up(dropped["key"], keys)
        for index, (row, num_bytes, reason) in enumerate(bad_rows.tolist()):
            drop = dropped[at[index]] if is_dropped[index] else None
            found = "a document" if drop is None else self.reasons[drop["reason"]]
            if found != BAD_NAMES[reason]:
                yield f"{file.path} row {row}: {BAD_NAMES[reason]}, but the dataset says {found}"
            elif drop["num_bytes"] != num_bytes:
                yield f"{file.path} row {row}: {num_bytes:,} bytes, but drops/ says {drop['num_bytes']:,}"

    def verify_documents(
        self, batch: DocumentBatch, kept: np.ndarray, dropped: np.ndarray, file: TaskFile
    ) -> Iterator[str]:
        """That each document is where the dataset says, with its text and ids, or dropped for the reason given."""
        documents = describe_documents(batch, self.settings)
        keys = key_rows(file.number, batch.rows)
        at, is_kept = look_up(kept["key"], keys)
        self.num_kept_bytes += int(documents.num_bytes[is_kept].sum())
        has_text = np.zeros(len(keys), bool)
        has_text[is_kept] = (kept["content_hash"][at[is_kept]] == documents.hashes[is_kept]).all(axis=1)
        for index in np.flatnonzero(is_kept & ~has_text):
            yield f"{file.path} row {batch.rows[index]}: its text is not the one that the dataset holds"
        for index in np.flatnonzero(is_kept & (documents.reasons != NO_REASON)):
            reason = self.reasons[documents.reasons[index]]
            kind = self.kinds[reason] if reason in self.settings.rules else reason
            yield f"{file.path} row {batch.rows[index]}: kept, but it is {kind}"
        yield from self.verify_drops(documents, keys, dropped, file)
        chosen = np.flatnonzero(has_text & self.choose(documents.hashes[:, 0]))
        for index in chosen[np.argsort(kept["shard"][at[chosen]], kind="stable")]:  # each shard's in one go
            where = f"{file.path} row {batch.rows[index]}"
            yield from self.verify_ids(batch.texts[int(index)].as_py(), kept[at[index]], where)

    def choose(self, numbers: np.ndarray) -> np.ndarray:
        """Which documents' ids are made again, by their hashes; which lines are read again, by their numbers."""
        return scramble(numbers ^ self.key) >> np.uint64(11) < np.uint64(self.fraction * 2**53)

    def verify_drops(
        self, documents: Documents, keys: np.ndarray, dropped: np.ndarray, file: TaskFile
    ) -> Iterator[str]:
        """That each dropped document went for the reason that holds, and a duplicate for one with its text."""
        at, is_dropped = look_up(dropped["key"], keys)
        copies = self.rows.copies.read(int(keys[0]), int(keys[-1]) + 1)
        copy_at, has_partner = look_up(copies["key"], keys)
        for index in np.flatnonzero(is_dropped):
            drop = dropped[at[index]]
            reason, expected = self.reasons[drop["reason"]], documents.reasons[index]
            num_bytes, num_chars = documents.num_bytes[index], documents.num_chars[index]
            is_copy = has_partner[index] and (copies["content_hash"][copy_at[index]] == documents.hashes[index]).all()
            problem = None
            if reason in BAD_NAMES:
                problem = "it is a document"
            elif reason == "duplicate_exact" and has_partner[index] and not is_copy:
                problem = "its partner has another text"
            elif reason == "beyond_tokens" and expected == NO_REASON:
                problem = self.verify_beyond(documents.hashes[index], file)
            elif reason != self.reasons[expected] and not (reason in self.unseen and expected == NO_REASON):
                kind = self.kinds.get(self.reasons[expected], "not of an excluded subset")
                problem = f"it has {num_chars:,} characters and is {kind}"
            elif reason == "contaminated" and reason not in self.unseen and drop["item"] != documents.items[index]:
                problem = "the first span that it shares is of another item"
            elif drop["num_bytes"] != num_bytes:
                problem = f"with {drop['num_bytes']:,} bytes, and it has {num_bytes:,}"
            if problem:
                yield f"{file.path} row {int(keys[index]) & ROW_MASK}: dropped as {reason}, but {problem}"

    def verify_beyond(self, content_hash: np.ndarray, file: TaskFile) -> str | None:
        """What is wrong with leaving a document out for the limit of --tokens; None: nothing."""
        place = int(find_places(content_hash[None], seed=self.settings.seed)[0])
        if place <= self.last_place:
            return "its place is before the last one that is kept"
        if file.split != "train":
            return f"it is of a {file.split} file, which --tokens leaves whole"
        return None

    @functools.cached_property
    def last_place(self) -> int:
        """The place of the last training document that is kept, or -1."""
        numbers = [number for number, (split, _) in enumerate(self.source.shards) if split == "train"]
        if not numbers:
            return -1
        table = read_documents_table(self.folder / self.source.shards[numbers[-1]][1]["path"])
        return int(places_of(table[-1:], self.source)[0])

    def verify_ids(self, text: str, kept: np.void, where: str) -> Iterator[str]:
        """That a shard holds exactly the ids that the reference engine makes of a text, framed."""
        path, tokens, ends = self.open_shard(int(kept["shard"]))
        document = int(kept["document"])
        found = tokens[int(ends[document - 1]) if document else 0 : int(ends[document])]
        frame = [self.tokenizer.bos_id] if self.content["document_rule"] == "bos+eos" else []
        expected = [*frame, *self.tokenizer.encode(text), self.tokenizer.eos_id]
        if len(found) != len(expected) or not np.array_equal(found, np.array(expected, self.dtype)):
            same = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(found))
            yield (
                f"{where}: document {document:,} of {path} has {len(found):,} ids, the reference engine makes "
                f"{len(expected):,}; they differ from id {same:,} on"
            )
