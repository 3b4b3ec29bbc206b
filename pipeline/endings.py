"""What the endings of raw files say: which are read, and how each is packed."""

from __future__ import annotations

COMPRESSIONS = {".zst": "zstd", ".gz": "gzip", ".bz2": "bz2", ".xz": "xz"}
PACKINGS = ("", *COMPRESSIONS)
ROW_ENDINGS = tuple(kind + packing for kind in (".jsonl", ".json", ".ndjson") for packing in PACKINGS)
TEXT_ENDINGS = tuple(f".txt{packing}" for packing in PACKINGS)
TABLE_ENDINGS = tuple(kind + packing for kind in (".csv", ".tsv") for packing in PACKINGS)
PACKED_ENDINGS = (*COMPRESSIONS, ".parquet")
KNOWN_ENDINGS = (*ROW_ENDINGS, *TEXT_ENDINGS, ".parquet", ".arrow")
KNOWN_KINDS = f"jsonl, json, ndjson, txt, csv or tsv (each also {', '.join(COMPRESSIONS)}), parquet or arrow"
# JSON that the hub and `datasets` put beside the data; read as rows, each would be a bad row.
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "sample.json")
