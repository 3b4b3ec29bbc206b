"""Random texts and random vocabularies through our SentencePiece kernel and through sentencepiece, until time is up.

    python tests/fuzz_spm.py --seconds 300 --seed 0

Round N of a seed is always the same. Exits with 1 at the first difference, and names the round.
"""

import argparse
import sys
import time
from pathlib import Path

if __package__ in (None, ""):  # started as `python tests/fuzz_spm.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.path.insert(1, str(Path(__file__).resolve().parent))

import numpy as np
from spm_models import OPTIONS, TEXT, build, parse, train
from test_spm_engine import PARTS, Pair

LLAMA = Path(__file__).resolve().parents[2] / "shared" / "data" / "tokenizers" / "llama2" / "tokenizer.model"
ALPHABETS = ("ab", "ab \u2581", "ab \u00e9\u4e2d\u2581", "abcdefgh \n")
DOCUMENTS_PER_ROUND = 200


def main():
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    pairs = [Pair(parse(train(**options))) for options in OPTIONS.values()]
    if LLAMA.exists():
        pairs += [Pair(parse(LLAMA.read_bytes()))] * len(pairs)  # as often as all the others together
    started, number = time.monotonic(), 0
    while time.monotonic() < started + flags.seconds:
        chance = np.random.default_rng((flags.seed, number))
        try:
            if number % 3:
                pairs[chance.integers(len(pairs))].check(make_texts(chance))
            else:
                check_vocabulary(chance)
        except (AssertionError, ValueError):
            print(f"seed {flags.seed}, round {number}: the ids or the text differ", flush=True)
            raise
        number += 1
    print(f"{number:,} rounds of {DOCUMENTS_PER_ROUND} documents, no difference")


def make_texts(chance):
    """Documents of hard parts, of real text cut anywhere, and of any characters."""
    return [make_text(chance) for _ in range(DOCUMENTS_PER_ROUND)]


def make_text(chance):
    """One document."""
    kind = chance.integers(3)
    if kind == 0:
        return "".join(chance.choice(PARTS, chance.integers(0, 30)))
    if kind == 1:
        text = TEXT[chance.integers(len(TEXT))]
        start, end = sorted(chance.integers(0, len(text) + 1, 2))
        return text[start:end] + str(chance.choice(PARTS)) + text[:start]
    limit = (0x80, 0x800, 0x3000, 0xD800, 0x110000)[chance.integers(5)]
    code_points = chance.integers(0, limit, chance.integers(0, 60))
    return "".join(chr(code_point) for code_point in code_points if not 0xD800 <= code_point <= 0xDFFF)


def check_vocabulary(chance):
    """A random vocabulary of few letters, few scores and many pieces, on texts of the same letters."""
    alphabet = list(ALPHABETS[chance.integers(len(ALPHABETS))])
    words = {"".join(chance.choice(alphabet, chance.integers(1, 7))).replace(" ", "\u2581") for _ in range(150)}
    user_defined = [word for word in sorted(words) if chance.random() < 0.02]
    scores = [(word, -float(chance.integers(0, 60))) for word in sorted(words - set(user_defined))]
    model = build(
        scores, has_prefix=chance.random() < 0.5, user_defined=user_defined, has_bytes=bool(chance.random() < 0.7)
    )
    Pair(model).check(["".join(chance.choice(alphabet, chance.integers(0, 90))) for _ in range(DOCUMENTS_PER_ROUND)])


if __name__ == "__main__":
    main()
