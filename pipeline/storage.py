"""Files on a local disk: write them whole or not at all, and sum them. Knows no format.

A file that exists under its final name is complete: it was written under a temporary name, synced, and renamed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

TEMPORARY_SUFFIX = ".tmp"
TEMPORARY_NAME = re.compile(rf"\.\d+{re.escape(TEMPORARY_SUFFIX)}$")  # what name_temporary puts behind a name
READ_BYTES = 8 << 20


@contextlib.contextmanager
def open_new(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write; it appears at `path` only when the block ends well.

    Raises OSError as the system does (a full disk, a read-only folder); then nothing is left behind.
    """
    with open_together([path]) as (file,):
        yield file


@contextlib.contextmanager
def open_together(paths: Sequence[Path]) -> Iterator[list[BinaryIO]]:
    """Like `open_new`, for several files of one folder: they appear when the block ends well, or none of them does.

    They are synced together, which takes a third of the time. Where the disk refuses, the error names the first.
    """
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    temporaries = [name_temporary(path) for path in paths]
    try:
        with naming(paths[0]), contextlib.ExitStack() as stack:
            files = [stack.enter_context(open(temporary, "wb")) for temporary in temporaries]
            yield files
            sync_files(files)
        for temporary, path in zip(temporaries, paths, strict=True):
            os.replace(temporary, path)
    except BaseException:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(paths[0].parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A new folder to write files in, which must be synced there; it takes the place of `path` only when the block ends
    well. Else nothing is left behind."""
    temporary = name_temporary(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        sync_folder(temporary)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)


def name_temporary(path: Path) -> Path:
    """What `path` is called until it is whole: another name for every writer, on this machine or another."""
    # Not the process id: two machines that share the storage may have the same.
    return path.with_name(f"{path.name}.{secrets.randbits(64)}{TEMPORARY_SUFFIX}")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let a system error in the block say which file it is about: a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or os.strerror(error.errno), str(path)) from error


def user_cache(name: str) -> Path:
    """The user's cache of one kind of files: tokenmill/<name> in XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "tokenmill" / name


@contextlib.contextmanager
def locked(path: Path, *, waits: bool = True) -> Iterator[bool]:
    """Let one process or thread of this machine at a time make `path`. The lock dies with its process.

    Gives whether it is ours: always, unless `waits` is False and another has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with naming(path):
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        yield False
        return
    except BaseException:
        os.close(descriptor)
        raise
    try:
        yield True
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a worker forked meanwhile holds the descriptor, too
        os.close(descriptor)


def sync_files(files: Sequence[BinaryIO]) -> None:
    """Make what was written to open files survive a power cut: all at once."""
    for file in files:
        file.flush()
    if len(files) == 1:
        os.fsync(files[0].fileno())
        return
    with ThreadPoolExecutor(len(files)) as threads:
        synced = [threads.submit(os.fsync, file.fileno()) for file in files]
    for each in synced:
        each.result()


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, buffers: Iterable[Any]) -> None:
    """Write bytes-like `buffers` one after the other to `path`, whole or not at all."""
    with open_new(path) as file:
        for buffer in buffers:
            file.write(buffer)


def write_all(file: BinaryIO, buffer: Any) -> None:
    """Write all of a bytes-like buffer to an unbuffered file, which may take it piece by piece."""
    left = memoryview(buffer)
    while left:
        left = left[file.write(left) :]


def view_bytes(array: np.ndarray) -> np.ndarray:
    """An array's bytes, in the order of its entries: uint8, one axis. Copied only where the array is not contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def read_into(path: Path, offset: int, room: Any) -> None:
    """Fill a bytes-like `room` from a file's byte `offset` on. Raises OSError where the file is gone or shorter."""
    left = memoryview(room)
    with naming(path), open(path, "rb", buffering=0) as file:
        file.seek(offset)
        while left:
            num_bytes = file.readinto(left)
            if not num_bytes:
                raise OSError(f"{path} ends {len(left):,} bytes too early: run the same command again to make it anew")
            left = left[num_bytes:]


def write_array(path: Path, array: np.ndarray) -> None:
    """Save an array as numpy does (.npy), whole or not at all. np.save would hide the system's error of a full disk."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    write_file(path, [header.getvalue(), view_bytes(array)])


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, its keys in their order, whole or not at all."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_file(path, [text.encode(), b"\n"])


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises ValueError naming the file where it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}): it was not written by this program, or is damaged") from error


def checksum(array: np.ndarray) -> str:
    """The xxh3-128 of an array's bytes, as 32 hex digits (https://github.com/Cyan4973/xxHash, canonical form)."""
    import xxhash

    return xxhash.xxh3_128_hexdigest(view_bytes(array))


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_file(path: Path) -> str:
    """The xxh3-128 of a file's bytes, as 32 hex digits."""
    import xxhash

    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
