"""Real text that a Python installation carries: prose from documentation, and code, in a fixed order.

Prose: the long descriptions of installed packages, their .md, .rst and .txt files, docstrings (one text per module) and
the language reference in pydoc_data. Code: the source files of the standard library and of installed packages.
The order is a hash of where a text comes from, so a small sample is as varied as a large one, and every run on one
installation sees the same. Nothing is written here, and nothing is known of sources.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import os
import pydoc_data.topics
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

OWN_NAME = "tokenmill"  # our own files change while we work; a sample should not
LONGEST_TEXT_BYTES = 1_000_000  # The Stack, too, leaves out files above 1 MB
SHORTEST_PROSE = 200  # characters; SlimPajama drops documents shorter than this
SHORTEST_DOCSTRING = 80
SHORTEST_CODE = 60
LEAST_LETTERS = 0.75  # share of letters and spaces in a .txt file; tables of numbers have less

LANGUAGES = {
    ".py": "python", ".pyi": "python", ".c": "c", ".h": "c", ".cc": "cpp", ".cpp": "cpp", ".hpp": "cpp", ".cu": "cuda",
    ".cuh": "cuda", ".f": "fortran", ".f90": "fortran", ".js": "javascript", ".mjs": "javascript", ".css": "css",
    ".html": "html", ".json": "json", ".yaml": "yaml", ".cmake": "cmake", ".sh": "shell", ".bat": "batchfile",
    ".ps1": "powershell", ".xsl": "xslt", ".proto": "protocol-buffer",
}  # fmt: skip
PROSE_ENDINGS = (".md", ".rst", ".txt")
CPLUSPLUS = re.compile(r"^\s*(?:namespace|template|class|using)\b", re.MULTILINE)
COMMENTS_ONLY = re.compile(r"\ufeff?(?:[ \t]*(?:#[^\n]*)?\r?\n)*[rRuU]?")
STRING_PREFIXES = ("", "r", "R", "u", "U")
GITHUB_REPOSITORY = re.compile(r"github\.com/([\w.-]+/[\w-]+)")


@dataclass(frozen=True)
class Installation:
    """The folders to take text from."""

    standard_library: Path
    packages: tuple[Path, ...]


@dataclass(frozen=True)
class Place:
    """Where one text can be read."""

    kind: str  # description, file, docstrings, topic or code
    repository: str  # as on GitHub where the package says so, else package/package
    path: str  # within the installation, with `/`; the name of a topic
    file: Path | None

    @property
    def order(self) -> bytes:
        """What texts are ordered by: the same for any folder that the installation lies in."""
        return hashlib.blake2b(f"{self.kind}\0{self.repository}\0{self.path}".encode(), digest_size=16).digest()


@dataclass(frozen=True)
class Text:
    """One text and where it was read."""

    place: Place
    text: str


@dataclass
class Reader:
    """Reads texts, none of them twice: what was read under another name is passed over."""

    seen: set[bytes] = field(default_factory=set)
    unreadable: set[Path] = field(default_factory=set)

    def read_all(self, places: list[Place]) -> Iterator[Text]:
        """The texts of `places`, in order, without those that are too short or too long or were read before."""
        for place in places:
            text = "\n\n".join(piece for piece in self.read_pieces(place) if self.is_new(piece))
            shortest = SHORTEST_CODE if place.kind == "code" else SHORTEST_PROSE
            if shortest <= len(text) and len(text.encode()) <= LONGEST_TEXT_BYTES and "\0" not in text:
                yield Text(place, text)

    def read_pieces(self, place: Place) -> list[str]:
        """The docstrings of a module, or a text of another kind whole; none where the file is no UTF-8 or not there."""
        if place.file is None:
            return [pydoc_data.topics.topics[place.path].strip()]
        try:
            text = place.file.read_bytes().decode()
        except (OSError, UnicodeDecodeError):
            self.unreadable.add(place.file)
            return []
        if place.kind == "docstrings":
            return find_docstrings(text)
        if place.kind == "description":
            return [text.partition("\n\n")[2].strip()]
        is_table = place.kind == "file" and share_of_letters(text) < LEAST_LETTERS
        return [] if is_table else [text]

    def is_new(self, text: str) -> bool:
        """Whether this is the first time that this text was asked about."""
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if digest in self.seen:
            return False
        self.seen.add(digest)
        return True


def this_installation() -> Installation:
    """The standard library and site-packages of the Python that runs."""
    paths = sysconfig.get_paths()
    packages = tuple(dict.fromkeys(Path(paths[name]) for name in ("purelib", "platlib")))
    return Installation(Path(paths["stdlib"]), packages)


def list_places(installation: Installation) -> tuple[list[Place], list[Place]]:
    """The places of prose and of code, each in its fixed order."""
    prose = [Place("topic", "python/cpython", name, None) for name in pydoc_data.topics.topics]
    code: list[Place] = []
    for repository, path, file in [*list_standard_library(installation), *list_packages(installation)]:
        name, ending = os.path.splitext(path.rsplit("/", 1)[-1])
        if ".dist-info/" in path:
            if name == "METADATA":
                prose.append(Place("description", repository, path, file))
        elif name == "CMakeLists" or ending in LANGUAGES:
            code.append(Place("code", repository, path, file))
            if ending == ".py":
                prose.append(Place("docstrings", repository, path, file))
        elif ending in PROSE_ENDINGS:
            prose.append(Place("file", repository, path, file))
    return sorted(prose, key=lambda place: place.order), sorted(code, key=lambda place: place.order)


def list_standard_library(installation: Installation) -> Iterator[tuple[str, str, Path]]:
    """Repository, path and file of every file of the standard library."""
    for folder, folders, names in os.walk(installation.standard_library):
        folders[:] = sorted(set(folders) - {"__pycache__", "site-packages", "dist-packages"})
        for name in sorted(names):
            file = Path(folder, name)
            yield "python/cpython", f"Lib/{file.relative_to(installation.standard_library).as_posix()}", file


def list_packages(installation: Installation) -> Iterator[tuple[str, str, Path]]:
    """Repository, path and file of every file that an installed package lists as its own, but for this project."""
    distributions = importlib.metadata.distributions(path=[str(folder) for folder in installation.packages])
    # A folder that a broken install left behind has no METADATA.
    complete = [distribution for distribution in distributions if distribution.read_text("METADATA")]
    for distribution in sorted(complete, key=lambda one: str(one.metadata["Name"]).lower()):
        name = str(distribution.metadata["Name"]).lower()
        if name == OWN_NAME:
            continue
        repository = find_repository(distribution.metadata.get_all("Project-URL", []), name=name)
        for listed in distribution.files or []:
            file = Path(str(distribution.locate_file(listed)))
            # Console commands lie outside, and hold the path of this computer's Python. Some versions of
            # importlib.metadata, its backport too where another package has loaded it, leave out what is not there.
            if ".." not in listed.parts and file.is_file():
                yield repository, listed.as_posix(), file


def find_repository(links: list[str], *, name: str) -> str:
    """`owner/name` on GitHub, from the first of a package's links that has one, else the package's name twice."""
    found = GITHUB_REPOSITORY.search("\n".join(links))
    return found[1] if found else f"{name}/{name}"


def find_docstrings(source: str) -> list[str]:
    """The docstrings of a module's source, without their indent; short ones are left out.

    What stands in triple double quotes at the beginning of the module or after a line that ends with a colon is taken
    for one. Against the parser: 50 times as fast, and 19 of 20 are the same; the others have escapes, kept as written,
    or are other real text.
    """
    parts = source.split('"""')
    docstrings = []
    for index, (before, body) in enumerate(zip(parts[::2], parts[1:-1:2], strict=False)):
        if len(body) >= SHORTEST_DOCSTRING and begins_a_block(before, is_first=index == 0):
            docstrings.append(inspect.cleandoc(body))
    return docstrings


def begins_a_block(before: str, *, is_first: bool) -> bool:
    """Whether a string after `before` is the first statement of a definition or of the module."""
    head, newline, indent = before[-300:].rpartition("\n")
    if indent.strip() not in STRING_PREFIXES:
        return False
    is_first_of_module = is_first and COMMENTS_ONLY.fullmatch(before) is not None
    return is_first_of_module or (newline == "\n" and head.rstrip().endswith(":"))


def share_of_letters(text: str) -> float:
    """The share of letters and spaces in the first 4,000 characters."""
    start = text[:4000]
    return sum(letter.isalpha() or letter.isspace() for letter in start) / max(1, len(start))


def name_language(text: Text) -> str:
    """The folder of starcoder that this code belongs in."""
    ending = os.path.splitext(text.place.path)[1]
    if ending == ".txt":
        return "cmake"
    is_cplusplus_header = ending == ".h" and CPLUSPLUS.search(text.text) is not None
    return "cpp" if is_cplusplus_header else LANGUAGES[ending]
