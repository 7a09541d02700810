"""A stand-in for Kaggle on this machine: the addresses that a download needs, with every way to go
wrong.

As with the real one, the archive comes from a storage server at another host. A login must not be
sent there: leaving the `with` block fails then.

    with KaggleServer(archive) as server: ...      # server.url, server.requests

`python tests/kaggle_server.py archive.zip` serves one on port 80, where Kaggle's client looks (and
so do we) when the environment variable KAGGLE_API_ENVIRONMENT is LOCALHOST. Most systems keep that
port for the administrator."""

import base64
import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

USERNAME, KEY, TOKEN = (
    "planted-user",
    "planted0key0planted0key0planted0",
    "KGAT_planted0token0planted0token",
)
PUBLIC_PATH = "/api/v1/datasets/download/dansbecker/cityscapes-image-pairs"
# Where the client asks since version 1.8; it asked at PUBLIC_PATH, with a login, before.
CLIENT_PATH = "/api/v1/datasets.DatasetApiService/DownloadDataset"
INTROSPECT_PATH = "/api/v1/security.OAuthService/IntrospectToken"
STORAGE_PATH = "/storage/archive.zip"  # on a server of its own, to which Kaggle redirects


@dataclass
class KaggleServer:
    """Answers as Kaggle does.

    Attributes:
        body: what the archive's address delivers.
        public_status: answer to a download without a login (200, 401, 403, 404, 429, 500).
        account_status: answer to a download with the right login; a wrong one always gets 401.
        cut_after: bytes after which the connection breaks, one number for each of the next answers.
        ranges: whether a part of the file may be asked for.
        chunk, pause: the body goes out in pieces of this many bytes, with so many seconds between
            them.
        html: deliver a page instead of the archive.
        requests: (method, path, login, range) of everything that was asked.
    """

    body: bytes = b""
    public_status: int = 200
    account_status: int = 200
    cut_after: list[int] = field(default_factory=list)
    ranges: bool = True
    chunk: int = 2**16
    pause: float = 0.0
    html: bool = False
    port: int = 0
    requests: list[tuple] = field(default_factory=list)

    def __enter__(self):
        self._servers = [self._serve(_Handler, self.port), self._serve(_Storage, 0)]
        self.url, self.storage = (
            f"http://127.0.0.1:{server.server_port}" for server in self._servers
        )
        self.storage = self.storage.replace("127.0.0.1", "localhost")
        return self

    def _serve(self, kind, port):
        server = ThreadingHTTPServer(
            ("127.0.0.1", port), type("Handler", (kind,), {"kaggle": self})
        )
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # a client that hangs up is part of the game
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        return server

    def __exit__(self, *_):
        for server in self._servers:
            server.shutdown()
            server.server_close()
        leaks = [request for request in self.asked(STORAGE_PATH) if request[2]]
        assert not leaks, f"the login was sent on to the storage server: {leaks}"

    def asked(self, path: str) -> list[tuple]:
        """The requests for one path."""
        return [request for request in self.requests if request[1] == path]


class _Handler(BaseHTTPRequestHandler):
    kaggle: KaggleServer

    def do_GET(self):
        self._answer()

    def do_POST(self):
        self._answer()

    def log_message(self, *_):
        pass

    def _answer(self):
        kaggle, login = self.kaggle, self.headers.get("Authorization", "")
        self.path = self.path.split("?")[0]
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kaggle.requests.append((self.command, self.path, login, self.headers.get("Range")))
        basic = "Basic " + base64.b64encode(f"{USERNAME}:{KEY}".encode()).decode()
        if self.path == INTROSPECT_PATH:
            active = json.loads(text)["token"] == TOKEN
            return self._send_json(200, {"active": active, "username": USERNAME if active else ""})
        if self.path not in (PUBLIC_PATH, CLIENT_PATH):
            return self._send_json(404, {"code": 404, "message": "Not found"})
        status = kaggle.public_status
        if login:
            status = kaggle.account_status if login in (basic, f"Bearer {TOKEN}") else 401
        if status != 200:
            return self._send_json(status, {"code": status, "message": "No"})
        self.send_response(302)
        self.send_header("Location", f"{kaggle.storage}{STORAGE_PATH}?signature=0123")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_json(self, status: int, content: dict):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Storage(_Handler):
    def _answer(self):
        self.path = self.path.split("?")[0]
        request = (
            self.command,
            self.path,
            self.headers.get("Authorization", ""),
            self.headers.get("Range"),
        )
        self.kaggle.requests.append(request)
        if (
            self.path != STORAGE_PATH or request[2]
        ):  # as real storage does, which knows one kind of login only
            return self._send_json(400, {"code": 400, "message": "Only one auth mechanism allowed"})
        self._send_archive()

    def _send_archive(self):
        kaggle, start = self.kaggle, 0
        size = len(kaggle.body)
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted and kaggle.ranges:
            start = int(wanted[1])
            if start >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        else:
            self.send_response(200)
        self.send_header(
            "Content-Type", "text/html; charset=utf-8" if kaggle.html else "application/zip"
        )
        self.send_header("Content-Length", str(size - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Thu, 26 Apr 2018 00:00:00 GMT")
        self.end_headers()
        end = start + kaggle.cut_after.pop(0) if kaggle.cut_after else size
        for position in range(start, min(end, size), kaggle.chunk):
            self.wfile.write(kaggle.body[position : min(position + kaggle.chunk, end)])
            threading.Event().wait(kaggle.pause)  # not time.sleep: tests replace that
        self.close_connection = True


if __name__ == "__main__":
    with KaggleServer(Path(sys.argv[1]).read_bytes(), port=80) as running:
        print(f"Serving {sys.argv[1]} at {running.url}; Ctrl-C ends it")
        threading.Event().wait()
