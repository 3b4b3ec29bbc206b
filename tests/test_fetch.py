"""One file from a server that misbehaves: the same bytes in the end, or one clear line."""

import hashlib
import threading
import time
from email.utils import formatdate

import pytest
from loopback import TOKEN, Fault, Hub, Server

from pipeline.fetch import Fetcher, StoppedError, name_part
from pipeline.hub import HubPlace
from pipeline.listing import RemoteFile
from pipeline.origins import parse_origin
from pipeline.url_list import UrlPlace
from pipeline.web import PassingError, Patience, find_wait

DATA = bytes(range(256)) * 16_000  # 4 MB: several chunks


def make_fetcher(server, waits, **how):
    patience = Patience(wait=waits.append, **how)
    return Fetcher(UrlPlace(parse_origin(f"{server.url}/urls.txt"), patience=patience), patience=patience)


def make_file(server, data=DATA, identity=None):
    identity = identity or f"sha256:{hashlib.sha256(data).hexdigest()}"
    return RemoteFile("a.jsonl", len(data), identity, f"{server.url}/a.jsonl")


def fetch(server, target, *, identity=None, **how):
    waits = []
    make_fetcher(server, waits, **how).fetch(make_file(server, identity=identity), target)
    return waits


FAULTS = {
    "cut at a byte": [Fault("a.jsonl", cut=1_500_001)],
    "cut near its end": [Fault("a.jsonl", cut=4_000_000)],
    "cut again and again": [Fault("a.jsonl", times=5, cut=700_000)],
    "cut before the first byte": [Fault("a.jsonl", cut=0)],
    "server errors": [Fault("a.jsonl", times=4, status=500), Fault("a.jsonl", status=503)],
    "a gateway": [Fault("a.jsonl", status=502)],
    "busy": [Fault("a.jsonl", status=429)],
    "damaged on the way": [Fault("a.jsonl", garble=True)],
}


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_a_file_comes_whole_through_faults(faults, ranges, tmp_path):
    with Server({"a.jsonl": DATA}, ranges=ranges) as server:
        server.faults = [Fault(**vars(fault)) for fault in faults]
        fetch(server, tmp_path / "in" / "a.jsonl")
    assert (tmp_path / "in" / "a.jsonl").read_bytes() == DATA
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["a.jsonl"]


def test_a_file_is_one_request_and_a_cut_one_goes_on_from_its_byte(tmp_path):
    with Server({"a.jsonl": DATA}) as server:
        fetch(server, tmp_path / "a")
        server.faults = [Fault("a.jsonl", cut=3_000_000)]
        fetch(server, tmp_path / "b")
    assert [asked for _, _, asked in server.requests] == [None, None, "bytes=3000000-"]


def test_a_stalled_body_is_given_up_and_gone_on_with(tmp_path):
    with Server({"a.jsonl": DATA}) as server:
        server.faults = [Fault("a.jsonl", cut=1_000_000, stall=1.0)]
        fetch(server, tmp_path / "a", read_seconds=0.2)
    assert (tmp_path / "a").read_bytes() == DATA


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"RateLimit": '"resolvers";r=0;t=55', "RateLimit-Policy": '"x";q=500;w=300'}, 55),
        ({"RateLimit": '"api";r=3;t=5, "resolvers";t=50;r=0'}, 50),
        ({"RateLimit-Remaining": "0", "RateLimit-Reset": "20"}, 20),
    ],
)
def test_the_server_says_how_long_to_wait(headers, seconds, tmp_path):
    with Server({"a.jsonl": DATA}) as server:
        server.faults = [Fault("a.jsonl", status=429, headers=headers)]
        waits = fetch(server, tmp_path / "a")
    assert len(waits) == 1 and seconds - 1 < waits[0] <= seconds


def test_one_asked_to_wait_keeps_all_quiet(tmp_path):
    waits = []
    with Server({"a.jsonl": DATA}) as server:
        server.faults = [Fault("a.jsonl", status=429, headers={"Retry-After": "30"})]
        fetcher = make_fetcher(server, waits)
        fetcher.fetch(make_file(server), tmp_path / "a")
        fetcher.fetch(make_file(server), tmp_path / "b")
    assert len(waits) == 2 and all(29 < seconds <= 30 for seconds in waits)


def test_waits_grow_and_end_with_one_line(tmp_path):
    waits, notices = [], []
    with Server({"a.jsonl": DATA}) as server:
        server.faults = [Fault("a.jsonl", times=99, status=500)]
        fetcher = make_fetcher(server, waits, most_failures=5, notice=notices.append)
        with pytest.raises(OSError, match=r"a\.jsonl: the server answers 500; given up after 5 attempts"):
            fetcher.fetch(make_file(server), tmp_path / "a")
    assert waits == [1, 2, 4, 8]
    assert notices == [f"a.jsonl: the server answers 500; trying again in {seconds} s" for seconds in (4, 8)]


def test_a_wait_of_hours_is_not_waited_for(tmp_path):
    with Server({"a.jsonl": DATA}) as server:
        server.faults = [Fault("a.jsonl", status=429, headers={"Retry-After": "90000"})]
        with pytest.raises(OSError, match="asks for 90,000 s of quiet"):
            fetch(server, tmp_path / "a")


def test_a_date_is_a_wait_too():
    assert find_wait({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert 25 < find_wait({"Retry-After": formatdate(time.time() + 30, usegmt=True)}) <= 30
    clock = {"Date": "Wed, 21 Oct 2015 07:27:15 GMT"}  # the server's, which is years behind
    assert find_wait({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT", **clock}) == 45
    assert find_wait({"Retry-After": "soon"}) is None
    assert find_wait({"RateLimit": '"api";r=12;t=55'}) is None  # some requests are left
    assert find_wait({"RateLimit-Remaining": "1", "RateLimit-Reset": "20"}) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"a.jsonl": DATA + b"x"}, "has changed since it was listed"),
        ({"a.jsonl": DATA[:-1] + b"x"}, "but sha256:.* was listed: they are damaged"),
        ({}, "the server answers 404: it is not there"),
    ],
)
def test_another_file_is_refused_with_one_line(change, said, tmp_path):
    with Server(change) as server, pytest.raises(ValueError, match=said) as caught:
        fetch(server, tmp_path / "a")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_an_etag_that_changed_is_refused(tmp_path):
    with Server({"a.jsonl": DATA}) as server:
        server.etags["a.jsonl"] = "one"
        fetch(server, tmp_path / "a", identity='etag:"one"')
        server.etags["a.jsonl"] = "two"
        with pytest.raises(ValueError, match="has changed since it was listed"):
            fetch(server, tmp_path / "b", identity='etag:"one"')


def test_a_weak_etag_is_the_same_as_a_strong_one(tmp_path):
    with Server({"urls.txt": b"a.jsonl", "a.jsonl": DATA}) as server:
        place = UrlPlace(parse_origin(f"{server.url}/urls.txt"), patience=Patience(wait=lambda _: None))
        server.etags["a.jsonl"] = 'W/"one"'
        (file,) = place.list_files().files
        server.etags["a.jsonl"] = "one"
        Fetcher(place, patience=place.patience).fetch(file, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_token_of_the_hub_goes_to_no_other_host(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with Server({"a.jsonl": DATA}) as other, Hub({"a.jsonl": DATA}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.cdn = other.url
        place = HubPlace(parse_origin("hf://org/name"), patience=Patience(), revision=None)
        (file,) = place.list_files().files
        Fetcher(place, patience=place.patience).fetch(file, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA
    assert hub.tokens[-1] == f"Bearer {TOKEN}" and other.tokens == [None]


def test_a_half_fetched_file_is_gone_on_with_only_if_it_is_the_same(tmp_path):
    with Server({"a.jsonl": DATA}) as server:
        file = make_file(server)
        name_part(tmp_path / "a", file).write_bytes(DATA[:1000])
        (tmp_path / "a.00000000.part").write_bytes(b"of another state of the file")
        (tmp_path / "a.b.00000000.part").write_bytes(b"of another file")
        fetch(server, tmp_path / "a")
    assert server.requests[0][2] == "bytes=1000-"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.b.00000000.part"]


def test_what_is_there_is_checked_not_fetched(tmp_path):
    with Server({"a.jsonl": DATA}) as server:
        (tmp_path / "a").write_bytes(DATA)
        fetch(server, tmp_path / "a")
        assert server.requests == []
        (tmp_path / "a").write_bytes(DATA[:-1] + b"x")
        with pytest.raises(ValueError, match="remove it and it is fetched again"):
            fetch(server, tmp_path / "a")


def test_git_blobs_are_checked(tmp_path):
    identity = f"git:{hashlib.sha1(b'blob %d' % len(DATA) + bytes(1) + DATA).hexdigest()}"
    with Server({"a.jsonl": DATA}) as server:
        fetch(server, tmp_path / "a", identity=identity)
        server.files["a.jsonl"] = DATA[:-1] + b"x"
        with pytest.raises(ValueError, match="damaged"):
            fetch(server, tmp_path / "b", identity=identity)


def test_fetching_can_be_called_off_and_leaves_what_it_has(tmp_path):
    with Server({"a.jsonl": DATA}) as server:
        fetcher = make_fetcher(server, [])
        asked = iter([False, False])
        fetcher.is_stopped = lambda: next(asked, True)
        with pytest.raises(StoppedError):
            fetcher.fetch(make_file(server), tmp_path / "a")
    (part,) = tmp_path.iterdir()
    assert DATA.startswith(part.read_bytes()) and part.stat().st_size > 0


def test_secrets_of_a_url_are_in_no_message(tmp_path):
    with Server({}) as server:
        address = server.url.replace("http://", "http://user:hush@") + "/corpus/a.jsonl?token=hush"
        place = UrlPlace(parse_origin(address), patience=Patience(wait=lambda _: None))
        with pytest.raises(ValueError, match="404") as caught:
            place.list_files()
    assert "hush" not in str(caught.value)


def test_a_url_that_leads_out_of_the_folder_is_refused():
    with Server({"v1/urls.txt": b"a.jsonl\n%2e%2e/%2e%2e/evil.jsonl\n", "v1/a.jsonl": b"{}"}) as server:
        server.files["v1/../../evil.jsonl"] = b"{}"
        place = UrlPlace(parse_origin(f"{server.url}/v1/urls.txt"), patience=Patience(wait=lambda _: None))
        with pytest.raises(ValueError, match=r"'\.\./\.\./evil\.jsonl' cannot be a file in a folder of ours"):
            place.list_files()


@pytest.mark.parametrize("target", ["/a.jsonl", "file:///etc/passwd", "http://[bad"])
def test_a_redirect_that_leads_nowhere_is_one_line_with_its_file(target, tmp_path):
    with Server({"urls.txt": b"\xef\xbb\xbfa.jsonl\r\n"}) as server:
        server.faults = [Fault("a.jsonl", times=99, method="HEAD", status=302, headers={"Location": target})]
        place = UrlPlace(parse_origin(f"{server.url}/urls.txt"), patience=Patience(wait=lambda _: None))
        with pytest.raises(ValueError, match=r"/urls\.txt: a\.jsonl: its address cannot be asked for \(\w+\)$"):
            place.list_files()


def test_no_server_at_all_is_one_line():
    server = Server({})
    server.http.server_close()
    place = UrlPlace(parse_origin(f"{server.url}/urls.txt"), patience=Patience(wait=lambda _: None))
    with pytest.raises(OSError, match=r"no answer \(ConnectionRefusedError\); given up after 10 attempts"):
        place.list_files()


def test_progress_renews_patience():
    patience, steps = Patience(wait=lambda _: None, most_failures=3), iter(range(20))
    reached = [0]

    def attempt():
        reached[0] = next(steps)
        if reached[0] < 15:
            raise PassingError("cut")
        return "whole"

    assert patience.persist(attempt, what="a", progress=lambda: reached[0]) == "whole"


def test_threads_share_what_was_waited():
    patience = Patience(wait=lambda _: None)

    def fail_once():
        failed = []

        def attempt():
            if not failed:
                failed.append(True)
                raise PassingError("busy", wait_seconds=0)

        patience.persist(attempt, what="a")

    threads = [threading.Thread(target=fail_once) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert patience.num_failures == 8
