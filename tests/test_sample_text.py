"""The text of a sample: what an installation holds, found and read once, and dealt to the sources."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_fixtures import MIX, small_installation

from pipeline.sample import deal, make_sample
from pipeline.sample_text import Place, Reader, Text, find_docstrings, list_places, this_installation


def test_a_small_installation_is_read_whole_and_the_report_says_so(tmp_path):
    installation = small_installation(tmp_path)
    report = make_sample(tmp_path / "raw", megabytes=50, sources=MIX, installation=installation)
    slimpajama, starcoder = report.sources
    assert slimpajama.text_bytes < slimpajama.wanted_bytes and starcoder.text_bytes < starcoder.wanted_bytes
    assert report.prose_bytes + report.code_bytes <= slimpajama.text_bytes + starcoder.text_bytes  # markers add some
    assert report.num_unreadable == 1  # latin.py, tried as prose and as code; gone.py is only listed
    assert any("all there was: this installation holds" in line for line in report.lines())
    assert any("50.00" not in line and "starcoder" in line and "of 15.00 MB" in line for line in report.lines())


def test_where_text_lacks_every_source_lacks_the_same_part(tmp_path):
    installation = small_installation(tmp_path, num_modules=300)
    report = make_sample(tmp_path / "raw", megabytes=1, sources=(("a", 3), ("b", 1)), installation=installation)
    parts = [source.text_bytes / source.wanted_bytes for source in report.sources]
    assert parts[0] == pytest.approx(parts[1], rel=0.1) and max(parts) < 0.7


def test_texts_are_those_that_packages_list_once_each(tmp_path):
    prose, code = list_places(small_installation(tmp_path, num_modules=1))
    reader = Reader()
    headers = [text for text in reader.read_all(code) if text.place.path.endswith(".h")]
    assert len(headers) == 1 and headers[0].place.repository == "shepherd/herd"  # copy.h is the same, the wolf unlisted
    kinds = {place.kind for place in prose}
    assert kinds == {"topic", "description", "docstrings"}
    assert "Herd keeps sheep" in next(text.text for text in reader.read_all(prose) if text.place.kind == "description")


def test_a_docstring_that_two_modules_share_is_read_once(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text('"""' + "Shared words. " * 20 + '"""\n' + f"{name} = 1\n")
    places = [Place("docstrings", "x/y", f"{name}.py", tmp_path / f"{name}.py") for name in ("a", "b")]
    assert len(list(Reader().read_all(places))) == 1


LONG = "It says a good deal about what the function does, and why. " * 3


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (f'"""{LONG}"""\n', [LONG.strip()]),
        (f'#!/usr/bin/env python\n# licence\n\n"""{LONG}"""\n', [LONG.strip()]),
        (f'def f():\n    """{LONG}\n    and more"""\n', [LONG + "\nand more"]),
        (f'def f():\r\n    r"""{LONG}"""\r\n', [LONG.strip()]),
        (f'class A:\n\n    """{LONG}"""\n', [LONG.strip()]),
        (f'x = """{LONG}"""\n', []),
        (f'print("hello")\n"""{LONG}"""\n', []),
        ('def f():\n    """Too short."""\n', []),
        (f'def f():\n    """{LONG}', []),
        (f'x = """\n"""\ndef f():\n    """{LONG}"""\n', [LONG.strip()]),
        ("", []),
    ],
)
def test_docstrings_are_found_without_parsing(source, expected):
    assert [docstring.strip() for docstring in find_docstrings(source)] == expected


@given(st.text(alphabet='"\n :rd#', max_size=60))
def test_any_source_has_some_docstrings_or_none(source):
    assert all(isinstance(docstring, str) for docstring in find_docstrings(source))


@pytest.mark.long
def test_this_installation_has_prose_and_code_in_a_fixed_order():
    prose, code = list_places(this_installation())
    assert {place.kind for place in prose} == {"topic", "description", "docstrings", "file"}
    assert len(code) > 1000 and code == sorted(code, key=lambda place: place.order)
    assert not any("tokenmill" in place.repository for place in [*prose, *code])


@given(
    st.lists(st.integers(1, 50), max_size=60),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 400), min_size=1),
)
def test_dealing_gives_each_text_once_and_never_more_than_is_wanted(sizes, wanted):
    texts = [Text(Place("file", "x/y", str(number), None), "x" * size) for number, size in enumerate(sizes)]
    dealt = deal(iter(texts), wanted)
    given_texts = [text for texts in dealt.texts.values() for text in texts]
    assert len(given_texts) == len({text.place.path for text in given_texts})
    for name, of_name in dealt.texts.items():
        assert dealt.filled[name] == sum(len(text.text) for text in of_name) <= wanted[name]
    if dealt.total_bytes is not None:
        assert dealt.total_bytes == sum(sizes)
