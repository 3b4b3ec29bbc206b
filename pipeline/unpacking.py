"""What packed files unpack to, as a stream in bounded memory: zstd, gzip and bzip2 by Arrow, xz by Python."""

from __future__ import annotations

import io
import lzma
from typing import Any

import pyarrow as pa

READ_BYTES = 1 << 16
XZ_MEMORY_BYTES = 256 << 20  # xz -9 needs 65 MiB


def unpack(file: pa.NativeFile, compression: str) -> pa.NativeFile:
    """What a file unpacks to; several packed streams in a row are one. Reading raises OSError where it is damaged."""
    if compression == "xz":
        return pa.PythonFile(XzReader(file), mode="r")
    return pa.CompressedInputStream(file, compression)


class XzReader(io.RawIOBase):
    """The text of an xz file. A file that asks for more than XZ_MEMORY_BYTES to be unpacked is refused."""

    def __init__(self, file: Any):
        super().__init__()
        self.file = file
        self.decompressor: lzma.LZMADecompressor | None = None

    def readable(self) -> bool:
        """Always: io asks."""
        return True

    def readinto(self, room: Any) -> int:
        """Fill some of `room`; returns how many bytes, 0 at the end."""
        while len(room):
            packed = self.read_packed()
            if packed is None:
                return 0
            try:
                text = self.decompressor.decompress(packed, len(room))
            except lzma.LZMAError as error:
                what = "too much memory is needed" if "Memory" in str(error) else str(error)
                raise OSError(f"xz: {what}") from None
            if text:
                room[: len(text)] = text
                return len(text)
        return 0

    def read_packed(self) -> bytes | None:
        """What to unpack next, of the next stream where one is at its end; None: there is no more."""
        if self.decompressor is not None and not self.decompressor.eof:
            packed = self.file.read(READ_BYTES) if self.decompressor.needs_input else b""
            if self.decompressor.needs_input and not packed:
                raise OSError("Truncated xz stream")
            return packed
        packed = b"" if self.decompressor is None else self.decompressor.unused_data
        while not (packed := packed.lstrip(b"\0")):  # streams are padded with zeros
            packed = self.file.read(READ_BYTES)
            if not packed:
                return None
        self.decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES)
        return packed
