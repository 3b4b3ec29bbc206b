"""What the tests of verify share: small datasets with their raw files, and how a claim is made false with all hashes right."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
from conftest import write_rows
from rich.console import Console

from pipeline.build import BuildArguments, build
from pipeline.finish import hash_content
from pipeline.plan import hash_recipe
from pipeline.shard import documents_path
from pipeline.storage import checksum_file


def text_rows(name, numbers):
    return [{"text": f"the text of {name} document {number}"} for number in numbers]


def build_in(folder, sample_model, **settings):
    arguments = {"raw": folder / "raw", "out": folder / "out", "tokenizer": str(sample_model), "workers": 1}
    build(BuildArguments(**{**arguments, "max_bad_fraction": 0.1, **settings}), Console(quiet=True))


def write_two_sources(raw):
    web, notes = text_rows("web", range(80)), text_rows("notes", range(40))
    write_rows(raw / "web/a.jsonl", [*web[:50], web[7], {"text": ""}, b"{"])
    write_rows(raw / "web/b.jsonl", [web[8], *web[50:], web[51], b"", b'{"text": 7}'])
    write_rows(raw / "notes/train/n.jsonl", [*notes[:30], web[9], web[10], notes[35]])
    write_rows(raw / "notes/validation/v.jsonl", notes[30:])


def put_at(content, keys, value):
    for key in keys[:-1]:
        content = content[key]
    content[keys[-1]] = value


def claim(*keys_and_value):
    """A change of dataset.json that puts a value at some keys, for `falsify`."""
    return lambda folder, content: put_at(content, keys_and_value[:-1], keys_and_value[-1])


def falsify(folder, change):
    """Change a dataset and its dataset.json by change(folder, content), and make all hashes agree."""
    content = json.loads((folder / "out/dataset.json").read_text())
    change(folder, content)
    save(folder, content)


def save(folder, content):
    """Write dataset.json with all checksums, sizes and hashes as the files and claims now are."""
    for source in content["sources"].values():
        for split in source["splits"].values():
            for shard in split["shards"]:
                path = folder / "out" / shard["path"]
                if path.is_file():
                    shard.update(xxh3_128=checksum_file(path), docs_xxh3_128=checksum_file(documents_path(path)))
        for file in source["drops"]:
            file["xxh3_128"] = checksum_file(folder / "out" / file["path"])
    content["content_hash"] = hash_content(content["sources"])
    content["recipe_hash"] = hash_recipe(content["settings"])
    (folder / "out/dataset.json").write_text(json.dumps(content))


def first_shard(folder, content, source="web", split="train"):
    return folder / "out" / content["sources"][source]["splits"][split]["shards"][0]["path"]


def edit_documents(folder, content, edit):
    """Change the table of web's first train shard."""
    path = documents_path(first_shard(folder, content))
    pq.write_table(edit(pq.read_table(path)), path)
    return pq.read_table(path).to_pydict()


def put(table, column, row, value):
    """The table with one value changed."""
    values = table[column].to_pylist()
    values[row] = value.as_py() if isinstance(value, pa.Scalar) else value
    field = table.schema.field(column)
    return table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))
