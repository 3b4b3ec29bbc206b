"""A command's flags, from the command line. Knows no command."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro

Flags = TypeVar("Flags")


def read_flags(kind: type[Flags]) -> Flags:
    """What the command was started with, as an object of `kind`: a dataclass with a sentence under each field.

    Shows the help, or what is wrong with a flag, and ends the process, as tyro.cli does. tyro breaks a sentence where
    its source does, and says (default: None) behind it; here it is one paragraph, for a terminal of any width.
    """
    hints = get_type_hints(kind, include_extras=True)
    defaults = {field.name: field.default for field in fields(kind)}
    described: dict[str, Any] = {}
    for name, sentence in list_sentences(kind):
        hint = "" if defaults[name] is None or defaults[name] == () else None
        described[name] = Annotated[hints[name], tyro.conf.arg(help=sentence, help_behavior_hint=hint)]
    body = {"__annotations__": described, "__doc__": kind.__doc__, "__module__": kind.__module__}
    read = tyro.cli(dataclass(frozen=True)(type(kind.__name__, (kind,), body)))
    return kind(**vars(read))


def list_sentences(kind: type) -> Iterator[tuple[str, str]]:
    """Each field of a dataclass with the string under it, as one line."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    for field, below in pairwise(definition.body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            yield field.target.id, " ".join(below.value.value.split())
