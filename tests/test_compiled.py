"""Loops are compiled whatever becomes of the files that compiled code is kept in."""

import shutil

import numba
import pytest
from numba.core import caching

from pipeline.compiled import compiled, explain_cache, njit


def add(left, right):
    return left + right


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The only folder for compiled code."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", caching.CacheImpl._locator_classes[:1])  # the user's
    return tmp_path / "cache"


def is_recalled():
    """Add in a new dispatcher; whether its code was there."""
    loop = njit(cache=True, nogil=True)(add)
    assert loop(1, 2) == 3
    return bool(loop.stats.cache_hits)


def test_compiled_code_is_kept(folder):
    assert [is_recalled(), is_recalled()] == [False, True]
    assert explain_cache() == ()


def test_without_a_folder_a_loop_is_compiled_all_the_same_and_the_user_is_told(folder):
    folder.write_text("not a folder")
    with pytest.raises(RuntimeError, match="no locator"):
        numba.njit(cache=True)(add)
    assert compiled(add)(1, 2) == 3
    assert [is_recalled(), is_recalled()] == [False, False]
    (line,) = explain_cache()
    assert "let NUMBA_CACHE_DIR name one" in line


@pytest.mark.parametrize("ending", [".nbi", ".nbc"])
@pytest.mark.parametrize("rest", [b"", b"no pickle"])
def test_a_file_of_compiled_code_that_is_spoilt_is_made_anew(folder, ending, rest):
    assert not is_recalled()
    (path,) = folder.rglob(f"*{ending}")
    path.write_bytes(rest)
    assert [is_recalled(), is_recalled()] == [False, True]


def test_a_folder_that_goes_while_the_program_runs_stops_nothing(folder):
    loop = compiled(add)
    shutil.rmtree(folder)
    folder.write_text("not a folder")
    assert loop(1, 2) == 3
