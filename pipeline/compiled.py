"""How our loops are compiled by numba, and machine instructions that it has no name for. Knows no loop itself.

Compiled code is kept on disk, beside its file or in the user's cache folder. numba does not notice there that something
in another file changed: whoever changes an instruction here touches the files that use it, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic


def compiled(function: Callable) -> Callable:
    """The function compiled at its first call; it lets other threads run, and makes no arrays.

    Without that, numba counts references to arrays, atomically, whenever one is read out of a tuple: three quarters of
    the SentencePiece kernel's time. Where no folder may be written to, each process compiles anew.
    """
    try:
        return njit(cache=True, nogil=True, _nrt=False)(function)
    except RuntimeError as error:  # numba's, where it finds no folder for its cache
        if "no locator" not in str(error):
            raise
        return njit(nogil=True, _nrt=False)(function)


WORD = ir.IntType(64)
VECTOR_BYTES = 64
VECTOR = ir.VectorType(ir.IntType(8), VECTOR_BYTES)


def _point_at(context: Any, builder: Any, signature: Any, arguments: Any, what: Any = WORD) -> Any:  # noqa: ANN401
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.bitcast(builder.gep(array.data, [arguments[1]]), what.as_pointer())


def _marking(comparison: str) -> Any:  # noqa: ANN401 - numba's
    """What marks those of 64 bytes that compare so with a constant: llvmlite's generator."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        found = builder.load(_point_at(context, builder, signature, arguments, VECTOR), align=1)
        first = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), arguments[2], ir.Constant(ir.IntType(32), 0))
        every = ir.Constant(ir.VectorType(ir.IntType(32), VECTOR_BYTES), [0] * VECTOR_BYTES)
        wanted = builder.shuffle_vector(first, ir.Constant(VECTOR, ir.Undefined), every)
        return builder.bitcast(builder.icmp_unsigned(comparison, found, wanted), WORD)

    return generate


@intrinsic
def mark_equal(_: Any, data: Any, position: Any, byte: Any) -> Any:  # noqa: ANN401 - numba's
    """Which of the 64 bytes from data[position] equal `byte` (uint8): a bit each, the first the lowest, in a uint64.
    Whoever calls sees to it that they are there."""
    return types.uint64(data, position, types.uint8), _marking("==")


@intrinsic
def mark_below(_: Any, data: Any, position: Any, byte: Any) -> Any:  # noqa: ANN401 - numba's
    """The same of those below `byte`."""
    return types.uint64(data, position, types.uint8), _marking("<")


@intrinsic
def copy_vector(_: Any, data: Any, position: Any, out: Any, place: Any) -> Any:  # noqa: ANN401 - numba's
    """Write the 64 bytes from data[position] over those from out[place]. Whoever calls makes sure of both."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        source = _point_at(context, builder, signature, arguments, VECTOR)
        array = context.make_array(signature.args[2])(context, builder, arguments[2])
        target = builder.bitcast(builder.gep(array.data, [arguments[3]]), VECTOR.as_pointer())
        builder.store(builder.load(source, align=1), target, align=1)
        return context.get_dummy_value()

    return types.void(data, position, out, place), generate


@intrinsic
def load_word(_: Any, data: Any, position: Any) -> Any:  # noqa: ANN401 - numba's
    """The 8 bytes from data[position] as uint64, at any alignment. Whoever calls sees to it that they are there."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        return builder.load(_point_at(context, builder, signature, arguments), align=1)

    return types.uint64(data, position), generate


@intrinsic
def store_word(_: Any, out: Any, position: Any, word: Any) -> Any:  # noqa: ANN401 - numba's
    """Write a uint64 over the 8 bytes from out[position], at any alignment. Whoever calls makes sure of the room."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        builder.store(arguments[2], _point_at(context, builder, signature, arguments), align=1)
        return context.get_dummy_value()

    return types.void(out, position, word), generate


@intrinsic
def count_trailing_zeros(_: Any, word: Any) -> Any:  # noqa: ANN401 - numba's
    """The number of the lowest bit that is set, of a uint64 that is not 0."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:  # noqa: ANN401
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(word), generate
