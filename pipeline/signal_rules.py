"""Rules about quality signals, as a person writes them: which documents of RedPajama-V2 are good enough. Reads nothing.

    rps_doc_word_count>=50;rps_lines_start_with_bulletpoint<=0.9    gopher    rps_doc_ut1_blacklist==null

A rule compares one signal with a number, or with null. Between rules stands `;` or `+`. A set of rules has a name in
the source's manifest. Where the signals lie and what they are: quality_signals.py.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
RULE = re.compile(r"([A-Za-z]\w*)\s*(>=|<=|==|!=|>|<)\s*(null|-?(?:\d+\.?\d*|\.\d+)(?:e-?\d{1,3})?)", re.ASCII)
BETWEEN = re.compile(r"[;+]")


@dataclass(frozen=True)
class Rule:
    """One comparison; None stands for null."""

    signal: str
    comparison: str
    number: float | None

    def __str__(self) -> str:
        number = "null" if self.number is None else f"{self.number!r}".removesuffix(".0")
        return f"{self.signal}{self.comparison}{number}"

    def passes(self, values: np.ndarray) -> np.ndarray:
        """Which values pass: bool. values: float64, NaN for null, which passes no comparison with a number."""
        is_null = np.isnan(values)
        if self.number is None:
            return is_null if self.comparison == "==" else ~is_null
        return OPERATORS[self.comparison](values, self.number) & ~is_null


def parse_rule(text: str) -> Rule:
    """The rule that `text` writes. Raises ValueError for any other text."""
    found = RULE.fullmatch(text.strip())
    if found is None or (found[3] == "null" and found[2] not in ("==", "!=")):
        raise ValueError(f"signals: {text.strip()!r} is no rule such as rps_doc_word_count>=50 or ccnet_perplexity<300")
    return Rule(found[1], found[2], None if found[3] == "null" else float(found[3]))


def parse_rules(text: str, named: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The rules that an option lists, each as it is always written, in their order, none twice.

    named: sets of rules by name. Raises ValueError for what is neither a rule nor such a name.

    >>> parse_rules("rps_doc_word_count >= 50.0;short", {"short": ("ccnet_length<300",)})
    ('rps_doc_word_count>=50', 'ccnet_length<300')
    """
    rules: dict[str, None] = {}
    for part in BETWEEN.split(text):
        if not part.strip():
            raise ValueError(f"signals: an empty rule in {text!r}; rules are parted by one ;")
        if part.strip().isidentifier() and part.strip() not in named:
            raise ValueError(
                f"signals: no set of rules is called {part.strip()!r}; known: {', '.join(named) or 'none'}"
            )
        for rule in named.get(part.strip(), (part,)):
            rules[str(parse_rule(rule))] = None
    return tuple(rules)


def is_written_rule(value: Any) -> bool:
    """Whether a value is a rule as it is always written."""
    try:
        return str(parse_rule(value)) == value
    except (AttributeError, ValueError):
        return False
