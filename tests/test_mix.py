from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.manifest import known_source_names
from pipeline.mix import load_named_mixes, parse_mix


def shares(text: str) -> dict[str, Fraction]:
    return {entry.source: entry.exact_weight for entry in parse_mix(text).entries}


def test_entries_keep_their_order_and_their_exact_weights():
    mix = parse_mix("starcoder:0.3,mine:0.7")
    assert [(entry.source, entry.weight, entry.exact_weight) for entry in mix.entries] == [
        ("starcoder", 0.3, Fraction(3, 10)),
        ("mine", 0.7, Fraction(7, 10)),
    ]
    assert (mix.name, mix.tokenizer, mix.notices) == (None, None, ())


def test_tinyllama_is_slimpajama_without_github_and_starcoder_in_its_published_weights():
    mix = parse_mix("tinyllama")
    assert [(entry.source, entry.exclude, entry.exact_weight) for entry in mix.entries] == [
        ("slimpajama", ("RedPajamaGithub",), Fraction(693584, 1000000)),
        ("starcoder", (), Fraction(306416, 1000000)),
    ]
    assert (mix.name, mix.tokenizer, mix.notices) == ("tinyllama", "llama2", ())


def test_litellama_is_redpajama_for_gpt2():
    mix = parse_mix(" litellama ")
    assert (mix.name, mix.tokenizer, shares("litellama")) == ("litellama", "gpt2", {"redpajama": Fraction(1)})


@pytest.mark.parametrize("name", load_named_mixes())
def test_every_named_mix_parses_without_a_notice_and_has_a_title(name):
    assert parse_mix(name).notices == () and load_named_mixes()[name]["title"]


@pytest.mark.parametrize("name", known_source_names())
def test_a_known_source_alone_is_a_mix_of_it(name):
    assert shares(name) == {name: Fraction(1)}
    assert parse_mix(name).name is None


def test_a_known_source_alone_takes_options():
    assert parse_mix("slimpajama?exclude=RedPajamaBook").entries[0].exclude == ("RedPajamaBook",)


@pytest.mark.parametrize(
    "options", ["exclude=RedPajamaC4+RedPajamaBook", "exclude=RedPajamaBook&exclude=RedPajamaC4+RedPajamaBook"]
)
def test_subsets_to_leave_out_are_the_same_however_written(options):
    assert parse_mix(f"slimpajama?{options}:1").entries[0].exclude == ("RedPajamaBook", "RedPajamaC4")


def test_weights_that_do_not_add_to_one_become_shares_and_the_notice_shows_them():
    mix = parse_mix("a:2,b:1")
    assert shares("a:2,b:1") == shares(" a : 2, b :1 ") == {"a": Fraction(2, 3), "b": Fraction(1, 3)}
    assert mix.notices == ("weights add up to 3, not 1; taken as shares: a 0.6667, b 0.3333",)


@pytest.mark.parametrize("weights", ["0.1,b:0.2,c:0.7", "1e-1,b:2E-1,c:.7", " +0.1 , b:0.20 , c:0.7"])
def test_weights_that_add_to_one_in_decimals_need_no_notice(weights):
    assert parse_mix(f"a:{weights}").notices == ()


def test_a_source_may_have_weight_zero_beside_others():
    assert shares("a:1,b:0") == {"a": Fraction(1), "b": Fraction(0)}


def test_slimpajama_with_github_beside_starcoder_brings_a_notice_that_can_be_pasted():
    (notice,) = parse_mix("slimpajama?exclude=RedPajamaBook:0.7,starcoder:0.3").notices
    assert "TinyLlama" in notice
    pasted = notice.split("'")[1]
    assert pasted == "slimpajama?exclude=RedPajamaBook+RedPajamaGithub:0.7"
    assert parse_mix(f"{pasted},starcoder:0.3").notices == ()


@pytest.mark.parametrize("text", ["slimpajama:1", "slimpajama:0.7,redpajama:0.3", "slimpajama:1,starcoder:0"])
def test_without_starcoder_drawn_there_is_no_such_notice(text):
    assert parse_mix(text).notices == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("a:1,", "empty entry"),
        (",a:1", "empty entry"),
        ("a:0.5,b", "'b' has no weight"),
        ("a:", "'' is not a number"),
        ("a:-0.5,b:1.5", "-0.5 is negative"),
        ("a:-nan", "'-nan' is not a number"),
        ("a:nan", "'nan' is not a number"),
        ("a:inf", "'inf' is not a number"),
        ("a:half", "'half' is not a number"),
        ("a:1/2", "'1/2' is not a number"),
        ("a:1_0", "'1_0' is not a number"),
        ("a:٣", "is not a number"),
        ("a:1e999999999", "'1e999999999' is not a number"),
        ("a:" + "9" * 5000, "is not a number"),
        ("a:0,b:0.0", "every weight is 0"),
        ("a:0.5,a:0.5", "'a' is there twice"),
        (":1", "source name ''"),
        ("..:1", "source name '..'"),
        ("a/b:1", "source name 'a/b'"),
        ("hf://org/name", "no weight; write hf://org/name:0.5"),
        ("hf://name:1", "write hf://ORG/NAME"),
        ("ftp://host/a:1", "raw files are read from a folder"),
        ("/data/notes?config=en:1", "?config= is for hf:// alone"),
        ("mine?config=en:1", "?config= is for hf://ORG/NAME"),
        ("mine?column=:1", "the option column has no value"),
        ("mine?only=a:1", "mine has no manifest"),
        ("s3://:1", "no bucket"),
        ("/:1", "give the source a name"),
        ("a b:1", "source name 'a b'"),
        ("slimpajama?include=RedPajamaC4:1", "no option 'include'"),
        ("slimpajama?exlude=RedPajamaC4:1", "nearest: exclude"),
        ("slimpajama?exclude=:1", "no subset ''"),
        ("slimpajama?exclude=redpajamagithub:1", "nearest: RedPajamaGithub"),
        ("starcoder?exclude=pyton:1", "nearest: python"),
        ("starcoder?exclude=klingon:1", "no subset 'klingon'"),
        ("mine?exclude=a:1", "mine has no manifest"),
        ("redpajama?exclude=arxiv+book+c4+common_crawl+github+stackexchange+wikipedia:1", "every subset is left out"),
        ("tinyllama:0.5,mine:0.5", "'tinyllama' is a named mix"),
        ("tinylama", "nearest: tinyllama"),
        ("starcode", "nearest: starcoder"),
        ("mydata", "write mydata:1"),
    ],
)
def test_a_wrong_mix_is_refused_with_what_is_wrong(text, said):
    with pytest.raises(ValueError) as caught:
        parse_mix(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="ab:,?=&+.-/e019 \n", max_size=30) | st.text(max_size=20))
@example("slimpajama?:1")
@example("a:1e-99,b:1e99")
def test_any_text_is_a_mix_of_shares_or_a_value_error(text):
    try:
        mix = parse_mix(text)
    except ValueError:
        return
    assert sum(entry.exact_weight for entry in mix.entries) == 1
    assert all(0 <= entry.weight <= 1 for entry in mix.entries)


@given(
    st.dictionaries(st.from_regex(r"[a-z][a-z0-9._-]{0,6}", fullmatch=True), st.decimals(0, 100, places=6), min_size=1)
)
def test_shares_are_the_weights_over_their_sum(weights):
    weights = {name: weight for name, weight in weights.items() if name not in load_named_mixes()}
    if not any(weights.values()):
        return
    total = sum(map(Fraction, weights.values()))
    written = ",".join(f"{name}:{weight:f}" for name, weight in weights.items())
    assert shares(written) == {name: Fraction(weight) / total for name, weight in weights.items()}
