"""Fetching ahead of ingest: in order, within its room, removed behind; and failures told to those who wait."""

import contextlib
import json

import pytest
from loopback import Fault, Server

from pipeline.arrival import wait_for_file
from pipeline.fetch import Fetcher
from pipeline.ingest import IngestTask, TaskFile
from pipeline.listing import Listing, RemoteFile, check_path, load_listing, make_listing, save_listing
from pipeline.origins import parse_origin
from pipeline.plan import sample_checksum
from pipeline.progress import BuildLog
from pipeline.read_ahead import ReadAhead
from pipeline.remote import RemoteSource
from pipeline.url_list import UrlPlace, name_paths
from pipeline.web import Patience

SIZE = 100_000


@pytest.fixture
def server():
    with Server({f"{number:02d}.jsonl": bytes([number]) * SIZE for number in range(12)}) as server:
        yield server


class Fetching:
    """A source of twelve files, and what fetches them for tasks of some files each."""

    def __init__(self, server, folder, *, files_each=1, room=3, finished=(), keep=False):
        self.work, self.room_bytes = folder, room * SIZE
        patience = Patience(wait=lambda _: None, most_failures=3)
        origin = parse_origin(f"{server.url}/urls.txt")
        names = sorted(server.files)
        files = [RemoteFile(name, SIZE, "", f"{server.url}/{name}") for name in names]
        fetcher = Fetcher(UrlPlace(origin, patience=patience), patience=patience)
        self.remote = RemoteSource(
            "web", Listing(str(origin), None, tuple(files)), fetcher, folder=folder / "raw", work=folder, keep=keep
        )
        self.tasks = [self.make_task(names[at : at + files_each]) for at in range(0, len(names), files_each)]
        self.finished = {self.tasks[number].name for number in finished}
        self.failure = folder / "failure.txt"

    def make_task(self, names):
        files = tuple(TaskFile(0, str(self.remote.folder / name), "train", None) for name in names)
        return IngestTask(f"web-{names[0]}", "web", files, SIZE, None, "", "")

    def ahead(self):
        log = BuildLog(self.work / "log.jsonl")
        how = {"finished": self.finished, "room_bytes": self.room_bytes, "failure": self.failure, "log": log}
        return ReadAhead(self.tasks, {"web": self.remote}, **how)

    def count_held(self):
        """The bytes of raw files on the disk, half-fetched ones too."""
        sizes = 0
        for path in self.remote.folder.glob("*"):
            with contextlib.suppress(FileNotFoundError):  # it got its name, or went, since it was listed
                sizes += path.stat().st_size
        return sizes

    def work_through(self, ahead):
        """Do all tasks as one worker would; returns the most bytes that were on the disk."""
        most = 0
        for task in self.tasks:
            if task.name in self.finished:
                continue
            for file in task.files:
                wait_for_file(self.remote.folder / file.path, self.failure)
                most = max(most, self.count_held())
            ahead.release(task, {"waited_seconds": 0.5})
        return most


def test_files_come_ahead_within_the_room_and_go_behind(server, tmp_path):
    fetching = Fetching(server, tmp_path)
    with fetching.ahead() as ahead:
        most = fetching.work_through(ahead)
    assert SIZE <= most <= ahead.most_held_bytes <= 3 * SIZE
    assert fetching.count_held() == 0
    assert sorted(path for _, path, _ in server.requests) == [f"/{name}" for name in sorted(server.files)]
    assert fetching.remote.checksums.keys() == server.files.keys()
    (line,) = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert (line["files"], line["bytes"], line["workers_waited_seconds"]) == (12, 12 * SIZE, 6)


def test_a_task_larger_than_the_room_is_done(server, tmp_path):
    fetching = Fetching(server, tmp_path, files_each=4, room=1)
    with fetching.ahead() as ahead:
        assert fetching.work_through(ahead) <= ahead.most_held_bytes <= 4 * SIZE
    assert fetching.count_held() == 0


def test_what_an_earlier_run_has_done_is_not_fetched_and_its_files_go(server, tmp_path):
    fetching = Fetching(server, tmp_path, finished=(0, 1, 5))
    fetching.remote.folder.mkdir()
    (fetching.remote.folder / "01.jsonl").write_bytes(server.files["01.jsonl"])
    (fetching.remote.folder / "03.jsonl").write_bytes(server.files["03.jsonl"])
    with fetching.ahead() as ahead:
        fetching.work_through(ahead)
    asked = {path for _, path, _ in server.requests}
    assert asked == {f"/{number:02d}.jsonl" for number in range(12) if number not in (0, 1, 3, 5)}
    assert fetching.count_held() == 0


def test_kept_files_stay(server, tmp_path):
    fetching = Fetching(server, tmp_path, keep=True, room=99)
    with fetching.ahead() as ahead:
        fetching.work_through(ahead)
    assert fetching.count_held() == 12 * SIZE


def test_those_who_wait_are_told_of_a_failure(server, tmp_path):
    fetching = Fetching(server, tmp_path)
    server.faults = [Fault("07.jsonl", times=99, status=500)]
    with (
        fetching.ahead() as ahead,
        pytest.raises(ValueError, match=r"web: 07.jsonl: .* given up after 3 attempts") as caught,
    ):
        fetching.work_through(ahead)
    assert "What was finished is kept" in str(caught.value)


def test_checksums_are_those_of_files_on_this_disk_and_outlive_a_kill(server, tmp_path):
    fetching = Fetching(server, tmp_path, keep=True)
    path = fetching.remote.bring("04.jsonl")
    fetching.remote.bring("05.jsonl")
    with open(fetching.remote.journal, "a") as journal:
        journal.write('\n{"path": "06.jso')  # killed while it wrote
    again = Fetching(server, tmp_path).remote
    assert again.checksum("04.jsonl") == sample_checksum(path)
    again.bring("06.jsonl")
    assert set(Fetching(server, tmp_path).remote.checksums) == {"04.jsonl", "05.jsonl", "06.jsonl"}


def test_a_listing_is_kept_for_its_own_origin_alone(tmp_path):
    origin = parse_origin("hf://org/name")
    listing = make_listing(
        origin, "5" * 40, [RemoteFile("b/é.jsonl", 3, "git:1", "b/é.jsonl"), RemoteFile("a", 1, "", "a")]
    )
    save_listing(listing, tmp_path / "web.json")
    assert load_listing(tmp_path / "web.json", origin) == listing
    assert load_listing(tmp_path / "web.json", parse_origin("hf://org/name@other")) is None
    assert load_listing(tmp_path / "none.json", origin) is None


@pytest.mark.parametrize(
    "path", ["../a", "a/../../b", "/etc/passwd", "a//b", "a/./b", "", "a\0b", f"{'x' * 300}.jsonl"]
)
def test_a_path_that_would_leave_the_folder_is_refused(path):
    with pytest.raises(ValueError, match="cannot be a file in a folder of ours"):
        check_path(path, parse_origin("s3://bucket"))


def test_a_path_that_is_there_twice_or_within_a_file_is_refused():
    origin = parse_origin("s3://bucket")
    for paths in (["a", "a"], ["a", "a/b"]):
        with pytest.raises(ValueError, match="twice, or is a file and a folder"):
            make_listing(origin, None, [RemoteFile(path, 1, "", path) for path in paths])


@pytest.mark.parametrize(
    ("urls", "base", "paths"),
    [
        (["http://h/v1/a/x.jsonl", "http://h/v1/b/y.jsonl"], "http://h/v1/urls.txt", ["a/x.jsonl", "b/y.jsonl"]),
        (["http://h/v1/a/x.jsonl", "http://h/v1/a/y.jsonl"], "http://i/urls.txt", ["x.jsonl", "y.jsonl"]),
        (["http://h/a/x.jsonl", "http://i/b/x.jsonl"], "http://i/urls.txt", ["a/x.jsonl", "b/x.jsonl"]),
        (["http://h/a%20b.jsonl?sig=hush"], "http://h/urls.txt", ["a b.jsonl"]),
        (["http://h/a.jsonl"], "http://h/a.jsonl", ["a.jsonl"]),
    ],
)
def test_urls_become_paths(urls, base, paths):
    assert name_paths(urls, base) == paths
