"""How our loops are compiled by numba, and machine instructions that it has no name for. Knows no loop itself.

Compiled code is kept on disk, beside its file or in the user's cache folder. numba does not notice there that something
in another file changed: whoever changes an instruction here touches the files that use it, too. Where nothing can be
kept, each process compiles anew.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic


class KeptCode(FunctionCache):
    """numba's cache of one function; but nothing that is wrong with its files stops the program."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:  # noqa: ANN401 - numba's
        """What was compiled before; None where there is nothing, or where it cannot be read."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # noqa: BLE001 - unpickling what was cut short or changed may raise anything
            self.forget()
            return None

    def forget(self) -> None:
        """Begin the list of what was compiled anew, if it can be written."""
        with contextlib.suppress(OSError):
            self.flush()

    def save_overload(self, sig: Any, data: Any) -> None:  # noqa: ANN401 - numba's
        """Keep what was compiled, unless the disk is full, or the folder gone or not to be written to any more."""
        with contextlib.suppress(OSError, EOFError, pickle.UnpicklingError):
            super().save_overload(sig, data)


def njit(*, cache: bool, nogil: bool, inline: str = "never", _nrt: bool = True) -> Callable[[Callable], Callable]:
    """numba.njit, but where nothing can be kept it compiles all the same."""

    def decorate(function: Callable) -> Callable:
        dispatcher = numba.njit(nogil=nogil, inline=inline, _nrt=_nrt)(function)
        if cache and (kept := open_cache(function)):
            dispatcher._cache = kept  # where cache=True puts a FunctionCache
        return dispatcher

    return decorate


def open_cache(function: Callable) -> KeptCode | None:
    """Where the compiled code of a function is kept; None where no folder may be written to."""
    try:
        return KeptCode(function)
    except RuntimeError as error:
        if "no locator" not in str(error):
            raise
        return None


def explain_cache() -> tuple[str, ...]:
    """What to tell the user where compiled code cannot be kept, in one line; else nothing."""
    if open_cache(explain_cache):
        return ()
    return (
        "compiled code cannot be kept, so each process compiles it again, about 20 s: neither the program's "
        "folder nor the user's cache folder may be written to; let NUMBA_CACHE_DIR name one that may be",
    )


# For loops that make no arrays. Unless told so numba counts references to arrays, atomically, whenever one is read out
# of a tuple: three quarters of the SentencePiece kernel's time.
compiled = njit(cache=True, nogil=True, _nrt=False)


# What leaves the first 0 to 8 bytes of a word that load_word gives, and makes the others 0.
BYTE_MASKS = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)

WORD = ir.IntType(64)
VECTOR_BYTES = 64
HALF = ir.VectorType(ir.IntType(8), VECTOR_BYTES // 2)  # whole vectors slow some processors down for a while


def _point_at(context: Any, builder: Any, signature: Any, arguments: Any, what: Any = WORD) -> Any:  # noqa: ANN401
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.bitcast(builder.gep(array.data, [arguments[1]]), what.as_pointer())


def _marking(comparison: str) -> Any:  # noqa: ANN401 - numba's
    """The code of mark_equal and mark_at_least: a uint64 with a bit for each of 64 bytes, the lowest for the first."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        place = _point_at(context, builder, signature, arguments, HALF)
        alike = builder.insert_element(ir.Constant(HALF, ir.Undefined), arguments[2], ir.IntType(32)(0))
        alike = builder.shuffle_vector(alike, alike, ir.Constant(ir.VectorType(ir.IntType(32), 32), [0] * 32))
        words = []
        for number in range(2):
            part = builder.load(builder.gep(place, [WORD(number)]), align=1)
            marks = builder.bitcast(builder.icmp_unsigned(comparison, part, alike), ir.IntType(32))
            words.append(builder.zext(marks, WORD))
        return builder.or_(words[0], builder.shl(words[1], WORD(32)))

    return generate


@intrinsic
def mark_equal(_: Any, data: Any, position: Any, byte: Any) -> Any:  # noqa: ANN401 - numba's
    """Which of the 64 bytes from data[position] equal `byte`, as bits. Whoever calls sees to it that they are there."""
    return types.uint64(data, position, types.uint8), _marking("==")


@intrinsic
def mark_at_least(_: Any, data: Any, position: Any, least: Any) -> Any:  # noqa: ANN401 - numba's
    """Which of the 64 bytes from data[position] are `least` or more, as bits; as mark_equal."""
    return types.uint64(data, position, types.uint8), _marking(">=")


@intrinsic
def copy_vector(_: Any, data: Any, position: Any, out: Any, place: Any) -> Any:  # noqa: ANN401 - numba's
    """Write the 64 bytes from data[position] over those from out[place]. Whoever calls makes sure of both."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        source = _point_at(context, builder, signature, arguments, HALF)
        array = context.make_array(signature.args[2])(context, builder, arguments[2])
        target = builder.bitcast(builder.gep(array.data, [arguments[3]]), HALF.as_pointer())
        for number in range(2):
            part = builder.load(builder.gep(source, [WORD(number)]), align=1)
            builder.store(part, builder.gep(target, [WORD(number)]), align=1)
        return context.get_dummy_value()

    return types.void(data, position, out, place), generate


@intrinsic
def load_word(_: Any, data: Any, position: Any) -> Any:  # noqa: ANN401 - numba's
    """The 8 bytes from data[position] as uint64, at any alignment. Whoever calls sees to it that they are there."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        return builder.load(_point_at(context, builder, signature, arguments), align=1)

    return types.uint64(data, position), generate


@intrinsic
def store_word(_: Any, out: Any, position: Any, skipped: Any, word: Any) -> Any:  # noqa: ANN401 - numba's
    """Write a uint64 `skipped` words of 8 bytes after out[position], at any alignment. Whoever calls makes sure of the
    room."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        place = builder.gep(_point_at(context, builder, signature, arguments), [arguments[2]])
        builder.store(arguments[3], place, align=1)
        return context.get_dummy_value()

    return types.void(out, position, skipped, word), generate


@intrinsic
def fetch_ahead(_: Any, data: Any, position: Any) -> Any:  # noqa: ANN401 - numba's
    """Let the memory around data[position] be loaded while the program goes on. It may lie outside of the array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        flag, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        place = _point_at(context, builder, signature, arguments, ir.IntType(8))
        builder.call(function, [place, flag(1), flag(3), flag(1)])  # to be written, into the nearest cache, data
        return context.get_dummy_value()

    return types.void(data, position), generate


@intrinsic
def count_trailing_zeros(_: Any, word: Any) -> Any:  # noqa: ANN401 - numba's
    """The number of the lowest bit that is set, of a uint64 that is not 0."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:  # noqa: ANN401
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(word), generate


@intrinsic
def count_ones(_: Any, word: Any) -> Any:  # noqa: ANN401 - numba's
    """How many bits of a uint64 are set."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:  # noqa: ANN401
        return builder.ctpop(arguments[0])

    return types.uint64(word), generate
