"""The flags of a build, and how counts are written."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

# ASCII digits and a short exponent: 1e999999999 as a fraction would fill the memory.
COUNT = re.compile(r"(\d+(?:_\d+)*(?:\.\d+)?(?:e\+?\d{1,2})?)([kmbt]?)", re.ASCII | re.IGNORECASE)
COUNT_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
LONGEST_COUNT = 40


@dataclass(frozen=True)
class BuildArguments:
    """Turn raw pretraining text into packed token shards."""

    mix: str
    """Sources and their shares of the tokens, name:weight,... or a named mix (tinyllama, litellama). A source takes
    options as in a URL: slimpajama?exclude=RedPajamaGithub:0.7. A name without a manifest is a folder of your own
    .jsonl, .json, .txt (also .zst, .gz, .bz2, .xz), .parquet or .arrow files in --raw. Or a place: /folder:1, hf://org/name:1,
    s3://bucket/prefix:1, https://host/urls.txt:1 (?config=, ?column=, ?name=)."""
    tokenizer: str | None = None
    """llama2, gpt2, sample (a small one trained on the raw text), or a path to a SentencePiece .model, a .tiktoken file
    or a tokenizer.json. Several, with commas between them, make a dataset each from one pass over the raw files:
    OUT/llama2, OUT/gpt2. Default: the named mix's; sample with --sample-mb; else llama2."""
    raw: Path | None = None
    """Folder with one folder of raw files per source. Default: data/raw; data/sample-<N>mb with --sample-mb."""
    out: Path = Path("data/packed")
    """Where the dataset goes."""
    work: Path | None = None
    """Where work files go while building; removed when done. Default: OUT/work."""
    dedup: Literal["none", "exact", "near", "slimpajama"] = "near"
    """exact: of documents with the same text one stays, over all sources and splits. near: of documents whose shingles
    of five words are nearly the same one stays, too; a document goes only if one that stays is near to it. slimpajama:
    as SlimPajama was made from RedPajama, which changes texts (ftfy), drops those under 200 characters and follows
    chains without a check."""
    dedup_threshold: float = 0.8
    """near: the share of shingles that two documents must have in common (Jaccard similarity)."""
    dedup_priority: str | None = None
    """Sources, with commas between them, whose documents stay rather than others'. Default: the order of --mix."""
    keep_signatures: bool = False
    """Keep with the dataset what a later build needs to find duplicates of its documents: OUT/signatures. With near
    300 bytes a document, with slimpajama 172, else 28."""
    against: str | None = None
    """Datasets built with --keep-signatures, with commas between them: also drop what they hold, as if their documents
    came first. They stay as they are."""
    decontaminate: tuple[Path, ...] = ()
    """Evaluation files (.jsonl, also .zst or .gz, .arrow, .parquet): documents that have 13 words in a row in common
    with a text in them are dropped, whatever --dedup says and in all splits, and drops/ names the item."""
    max_dup_fraction: float = 0.7
    """Stop before packing if a larger share of a source's documents, or of a subset's that has folders of its own, goes
    as duplicates, and show the largest clusters."""
    dedup_report: bool = False
    """Say how much goes as duplicates, and the largest clusters, and go on whatever it is."""
    memory: float = 4.0
    """GiB of memory that all workers of a machine together may take to find near duplicates. The output does not
    depend on it."""
    write_text: Path | None = None
    """While building, also write the texts that stay there, in SlimPajama's layout:
    train/chunk1/example_train_0.jsonl.zst and so on."""
    workers: int = os.cpu_count() or 1
    """Worker processes of --executor local. The output does not depend on it."""
    executor: Literal["local", "ray"] = "local"
    """Where tasks run: in worker processes here, or on the CPUs of a Ray cluster that shares this storage."""
    ray_address: str = "auto"
    """HOST:PORT of the cluster's head. auto: $RAY_ADDRESS, or the cluster that this machine is part of."""
    seed: int = 0
    """Decides the order of documents."""
    shard_tokens: int = 1 << 28
    """About how many tokens a shard holds."""
    valid_fraction: float = 0.005
    """Share of the documents that become validation where a source has no validation files of its own."""
    document_rule: Literal["auto", "bos+eos", "eos"] = "auto"
    """Ids around each document. auto: what the tokenizer's family does at inference (Llama: bos+eos, GPT-2: eos)."""
    min_chars: int = 1
    """Documents with fewer characters are dropped as short. 1 drops only empty ones."""
    max_bad_fraction: float = 0.01
    """Stop if a larger share of a source's rows holds no document (broken JSON, no text, not UTF-8)."""
    engine: Literal["fast", "reference"] = "fast"
    """fast: our own encoder for SentencePiece BPE, gigatoken for other kinds. reference: the tokenizer's own library
    (sentencepiece, tiktoken or tokenizers). The ids are the same."""
    tokens: str | None = None
    """Stop each source at its share of so many training tokens: 300_000_000, 1e9, 500M, 10B, 1.5T. Default: all there
    is."""
    fetch: bool = False
    """Fetch the sources that have a manifest while they are read, rather than look for them in --raw. Sources written
    as hf://, s3://, gs:// or http(s):// always are."""
    cache_gb: float = 20.0
    """About how much of fetched raw files may be on the disk at once, in OUT/work/raw; removed once they are read."""
    keep_raw: bool = False
    """Fetch into --raw, and keep the raw files."""
    languages: str | None = None
    """Of starcoder only these folders, with commas between them: python,go,github-issues-filtered-structured."""
    strip_markers: bool = False
    """Take starcoder's markers (<reponame>, <filename>, <gh_stars>, <issue_start>, ...) out of its texts."""
    sample_mb: float | None = None
    """Try it without raw files: first make up to this many MB of raw files from text on this computer."""
    replace: bool = False
    """Remove what an earlier build left in --out and --work, and start over."""
    expect: str | None = None
    """Fail unless the recipe hash or the content hash begins with this: the same dataset as somebody else's."""
    dry_run: bool = False
    """Read about 100 MB of the raw files and say what the build will make, hold and take. Writes nothing."""
    keep_work: bool = False
    """Leave the work files where they are when the build is done."""

    @property
    def num_tokens(self) -> int | None:
        """--tokens as a number. Raises ValueError where it is none."""
        return None if self.tokens is None else parse_count(self.tokens, flag="--tokens")

    @property
    def raw_folder(self) -> Path:
        """Where the raw files are: a sample never goes where the real ones are expected."""
        if self.raw is not None:
            return self.raw
        return Path("data/raw") if self.sample_mb is None else Path(f"data/sample-{self.sample_mb:g}mb")


def check_arguments(arguments: BuildArguments) -> None:
    """Raise ValueError for a number that makes no sense."""
    infinity = float("inf")
    limits = {
        "workers": (1, infinity),
        "seed": (0, infinity),
        "shard_tokens": (1, infinity),
        "min_chars": (0, infinity),
        "cache_gb": (0, infinity),
        "valid_fraction": (0, 1),
        "dedup_threshold": (0.5, 1),
        "memory": (0.1, infinity),
        "max_bad_fraction": (0, 1),
        "max_dup_fraction": (0, 1),
    }
    _ = arguments.num_tokens  # raises where that is none
    check_dedup(arguments)
    if arguments.fetch and arguments.sample_mb is not None:
        raise ValueError("--fetch and --sample-mb: raw files are fetched or made, not both")
    for name, (lowest, highest) in limits.items():
        value = getattr(arguments, name)
        if value is not None and not lowest <= value <= highest:
            wanted = f"{lowest} or more" if highest == infinity else f"from {lowest} to {highest}"
            raise ValueError(f"--{name.replace('_', '-')} must be {wanted}, found {value}")


def check_dedup(arguments: BuildArguments) -> None:
    """Raise ValueError for a flag that means nothing with the --dedup there is."""
    method = arguments.dedup
    if arguments.against is not None and method == "none":
        raise ValueError("--against drops duplicates: it goes with --dedup exact, near or slimpajama, not with none")
    if arguments.dedup_priority is not None and method == "none":
        raise ValueError("--dedup-priority says which of several duplicates stays: with --dedup none all stay")
    if arguments.dedup_threshold != BuildArguments.dedup_threshold and method != "near":
        raise ValueError(f"--dedup-threshold is of --dedup near: it changes nothing with {method}, leave it out")


def parse_count(text: str, *, flag: str) -> int:
    """The whole number, 1 or more, that a person writes for a flag. Raises ValueError that names the flag.

    >>> [parse_count(text, flag="--tokens") for text in ("300_000_000", "1e9", "1.5T", "20k")]
    [300000000, 1000000000, 1500000000000, 20000]
    """
    written = COUNT.fullmatch(text) if len(text) <= LONGEST_COUNT else None
    count = Fraction(written[1].replace("_", "")) * COUNT_UNITS[written[2].lower()] if written else Fraction(0)
    if count < 1 or count.denominator != 1:
        raise ValueError(
            f"{flag} {text!r}: write a whole number, 1 or more, such as 300_000_000, 1e9, 20k, 500M, 10B or 1.5T"
        )
    return int(count)
