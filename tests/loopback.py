"""Servers on loopback that tests start: raw files over HTTP, the hub's API, a bucket; and the faults they are told."""

import base64
import contextlib
import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

SHA = "5" * 40
TOKEN = "hf_secretsecretsecret"
AWS_SECRET = "aws-secretsecret"


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose path contains `path`.

    status: answered instead of the file, with `headers`. cut: the body breaks off after so many bytes. stall: seconds
    before the rest of the body comes. garble: the last byte is another.
    """

    path: str
    times: int = 1
    method: str = "GET"
    status: int | None = None
    headers: dict = field(default_factory=dict)
    cut: int | None = None
    stall: float | None = None
    garble: bool = False


class QuietServer(ThreadingHTTPServer):
    """Says nothing of clients that go before all is sent: some are killed."""

    def handle_error(self, request, client_address):
        pass


class Handler(BaseHTTPRequestHandler):
    """Answers one client of a Server, its `owner`."""

    protocol_version = "HTTP/1.1"

    @property
    def owner(self):
        return self.server.owner

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer("HEAD")

    def do_GET(self):
        self.answer("GET")

    def do_POST(self):
        self.send(*self.owner.accept(self.path, self.read_body()))

    do_PUT = do_POST

    def read_body(self):
        return self.rfile.read(int(self.headers["Content-Length"]))

    def answer(self, method):
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        with self.owner.lock:
            self.owner.requests.append((method, path, self.headers.get("Range")))
            self.owner.tokens.append(self.headers.get("Authorization"))
        time.sleep(self.owner.latency)
        fault = self.owner.take_fault(method, path)
        if fault and fault.status:
            self.send(fault.status, b"", fault.headers)
        elif not self.owner.answer_api(self, path, parse_qs(parts.query)):
            self.send_file(method, path, fault or Fault(""))

    def send(self, status, body, headers=(), *, method="GET"):
        self.send_response(status)
        headers = {"Content-Length": len(body), **dict(headers)}
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if method == "GET":
            self.wfile.write(body)

    def send_file(self, method, path, fault):
        data = self.owner.find(path)
        if data is None:
            self.send(404, b"")
            return
        if fault.garble:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start, headers = 0, {"ETag": self.owner.find_etag(path, data), "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        if asked and self.owner.ranges:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        self.send_response(206 if start else 200)
        for name, value in {**headers, "Content-Length": len(body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if method == "GET":
            self.send_body(body, fault)

    def send_body(self, body, fault):
        cut = fault.cut if fault.cut is not None else len(body)
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body[:cut])
            self.wfile.flush()
            if fault.stall is not None:
                time.sleep(fault.stall)
        if fault.cut is not None:
            self.close_connection = True


class Server:
    """Files by path, under a URL. `requests` lists (method, path, range) of all that was asked, `tokens` what by whom."""

    def __init__(self, files=None, *, ranges=True, latency=0.0, gated=False):
        self.files = dict(files or {})
        self.faults, self.requests, self.tokens = [], [], []
        self.ranges, self.latency, self.gated = ranges, latency, gated
        self.etags = {}
        self.lock = threading.Lock()
        self.http = QuietServer(("127.0.0.1", 0), Handler)
        self.http.owner = self
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def take_fault(self, method, path):
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.path in path and fault.method == method:
                    fault.times -= 1
                    return fault
        return None

    def find(self, path):
        """The bytes of a file, or None."""
        return self.files.get(path.lstrip("/"))

    def find_etag(self, path, data):
        etag = self.etags.get(path.lstrip("/"), hashlib.sha256(data).hexdigest()[:16])
        return etag if '"' in etag else f'"{etag}"'

    def count(self, text, method="GET"):
        return sum(text in path and asked == method for asked, path, _ in self.requests)

    def answer_api(self, handler, path, query):
        """Answer a request that is not for a file; returns whether it was one."""
        return False

    def accept(self, path, body):
        """Answer a POST or PUT: status and body."""
        return 405, b""


class Hub(Server):
    """A data set on a hub, org/name, that speaks the paths of the hub's API; large files are on another path, as LFS."""

    PAGE = 2  # files on a page of a listing: few, so that there are several pages

    def __init__(self, files, *, gated=False, **how):
        super().__init__(files, gated=gated, **how)
        self.sha, self.cdn = SHA, f"{self.url}/cdn"

    def answer_api(self, handler, path, query):
        api, tree = "/api/datasets/org/name", "/api/datasets/org/name/tree/"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{self.sha}"):
            handler.send(
                200, json.dumps({"id": "org/name", "sha": self.sha, "siblings": [], **self.read_card()}).encode()
            )
        elif path.startswith(tree):
            self.send_tree(handler, path.removeprefix(tree), int(query.get("cursor", ["0"])[0]))
        elif path.startswith("/datasets/org/name/resolve/"):
            self.send_resolved(handler, path.removeprefix("/datasets/org/name/resolve/"))
        elif path.startswith("/cdn/"):
            return False
        else:
            handler.send(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        return True

    def read_card(self):
        card = self.files.get("card.json")
        return {"cardData": json.loads(card)} if card else {}

    def send_tree(self, handler, rest, cursor):
        revision, _, folder = rest.partition("/")
        if revision != self.sha:
            handler.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        names = sorted(name for name in self.files if name.startswith(folder) and name != "card.json")
        page = [self.describe(name) for name in names[cursor : cursor + self.PAGE]]
        more = cursor + self.PAGE < len(names)
        link = f'<{self.url}/api/datasets/org/name/tree/{rest}?recursive=true&cursor={cursor + self.PAGE}>; rel="next"'
        handler.send(200, json.dumps(page).encode(), {"Link": link} if more else {})

    def describe(self, name):
        data = self.files[name]
        entry = {"type": "file", "path": name, "size": len(data)}
        if name.endswith((".json", ".md")):  # small ones lie in git
            blob = b"blob %d\0" % len(data) + data
            return {**entry, "oid": hashlib.sha1(blob).hexdigest()}
        sha256 = hashlib.sha256(data).hexdigest()
        return {**entry, "oid": "0" * 40, "lfs": {"oid": sha256, "size": len(data), "pointerSize": 130}}

    def send_resolved(self, handler, rest):
        revision, _, name = rest.partition("/")
        if self.gated and handler.headers.get("Authorization") != f"Bearer {TOKEN}":
            handler.send(401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to dataset is restricted"})
        elif revision != self.sha or name not in self.files:
            handler.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            handler.send(302, b"", {"Location": f"{self.cdn}/{quote(name)}", "X-Linked-Size": len(self.files[name])})

    def find(self, path):
        return self.files.get(path.removeprefix("/cdn/"))


class WritableHub(Hub):
    """A hub that takes commits: small files within them, large ones by LFS before. `commits` lists their paths, `titles` what they say."""

    def __init__(self, files=(), **how):
        super().__init__(files, **how)
        self.commits, self.titles, self.blobs = [], [], {}

    def accept(self, path, body):
        path = urlsplit(path).path
        if path.startswith("/lfs/"):
            self.blobs[path.removeprefix("/lfs/")] = body
            return 200, b""
        if path.endswith("/commit/main"):
            self.commit([json.loads(line) for line in body.splitlines()])
            answer = {"commitUrl": f"{self.url}/datasets/org/name/commit/{self.sha}", "commitOid": self.sha}
        elif path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "regular" if name.endswith((".json", ".md")) else "lfs" for name in names}
            answer = {"files": [{"path": name, "uploadMode": modes[name], "shouldIgnore": False} for name in names]}
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            answer = {"transfer": "basic", "objects": objects}
        else:
            answer = {"url": f"{self.url}/datasets/org/name", "errors": [], "warnings": []}
        return 200, json.dumps(answer).encode()

    def commit(self, lines):
        added = {}
        for line in lines:
            if line["key"] == "header":
                self.titles.append(line["value"]["summary"])
            elif line["key"] == "file":
                added[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                added[line["value"]["path"]] = self.blobs[line["value"]["oid"]]
        self.files.update(added)
        self.commits.append(list(added))


class FaultyBucket(Server):
    """Stands before a bucket server and hands on what it is asked, but for the faults it is told."""

    def __init__(self, upstream, client):
        super().__init__()
        self.upstream, self.client = upstream, client

    def answer_api(self, handler, path, query):
        import requests

        if path.count("/") > 1 and path.rpartition("/")[2]:  # an object: send_file fetches it
            return False
        answer = requests.request(handler.command, self.upstream + handler.path, timeout=10)
        handler.send(answer.status_code, answer.content, {"Content-Type": "application/xml"}, method=handler.command)
        return True

    def find(self, path):
        bucket, _, key = path.lstrip("/").partition("/")
        answer = self.client.get_object(Bucket=bucket, Key=key)
        self.etags[path.lstrip("/")] = answer["ETag"].strip('"')
        return answer["Body"].read()


@contextlib.contextmanager
def bucket_server(objects, monkeypatch):
    """moto's S3 server with a bucket `corpus` of these objects; the environment leads clients to it. Gives its client."""
    import boto3
    import requests
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": AWS_SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    try:
        requests.post(f"http://{host}:{port}/moto-api/reset", timeout=10)  # moto's buckets outlive its servers
        client = boto3.client("s3")
        client.create_bucket(Bucket="corpus")
        for key, data in objects.items():
            client.put_object(Bucket="corpus", Key=key, Body=data)
        yield client
    finally:
        server.stop()
