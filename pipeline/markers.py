"""Takes StarCoder's markers out of its texts, for --strip-markers.

About half of the texts of a language begin with a line such as <reponame>a/b<filename>x.py<gh_stars>1-10, which goes.
In the folders of issues, notebooks and commits markers stand all over the text; each goes, what is between them stays.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

STARCODER = "starcoder"
MARKED_FOLDERS = (
    "git-commits-cleaned",
    "github-issues-filtered-structured",
    "jupyter-scripts-dedup-filtered",
    "jupyter-structured-clean-dedup",
)
FIRST_LINE = r"\A(?:<(?:reponame|filename|gh_stars)>[^<\n]*)+\n?"
MARKERS = (
    r"<(?:reponame|filename|gh_stars|issue_start|issue_comment|issue_closed|jupyter_start|jupyter_text|jupyter_code"
    r"|jupyter_output|empty_output|commit_before|commit_msg|commit_after|commit_diff)>"
)


def strip_markers(texts: pa.Array, subset: str | None) -> pa.Array:
    """Some texts of starcoder, of a raw file in the folder `subset`, without its markers.

    >>> strip_markers(pa.array(["<reponame>a/b<gh_stars>0\\nx = 1", "x = '<gh_stars>'"]), "python").to_pylist()
    ['x = 1', "x = '<gh_stars>'"]
    """
    if subset in MARKED_FOLDERS:
        return pc.replace_substring_regex(texts, MARKERS, "")
    return pc.replace_substring_regex(texts, FIRST_LINE, "", max_replacements=1)
