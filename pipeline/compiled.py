"""How our loops are compiled by numba, and three machine instructions that it has no name for. Knows no loop itself.

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


def _point_at(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401 - llvmlite's
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.bitcast(builder.gep(array.data, [arguments[1]]), ir.IntType(64).as_pointer())


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
