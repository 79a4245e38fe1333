"""An HTTP server on loopback that gives files of a folder, in ranges, and fails as it is told to."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple


class Asked(NamedTuple):
    """A request for a file: its path in the folder, and the bytes that were asked for, or None."""

    method: str
    path: str
    start: int | None


@dataclass
class Answer:
    """How a request is answered, if not as it should be."""

    status: int = 0  # instead of the file
    closes_after: int | None = None  # bytes, of those that were announced
    stalls: float = 0  # seconds before anything is sent
    ranges: bool = True  # whether the server knows them
    content: bytes | None = None  # instead of the file's


WELL = Answer()


@dataclass
class Server:
    """A folder behind HTTP.  `fault` says how the n-th request is answered, from 0."""

    folder: Path
    fault: Callable[[int, Asked], Answer] = lambda number, asked: WELL
    latency: float = 0  # seconds before an answer
    bandwidth: float = 0  # bytes a second of one connection; 0: as it comes
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    sent: int = 0  # bytes of files

    def gets(self, ending: str = "") -> list[Asked]:
        """Return the requests for the bytes of files of an ending."""
        return [asked for asked in self.asked if asked.method == "GET" and asked.path.endswith(ending)]


@contextmanager
def serving(folder: Path, port: int = 0) -> Iterator[Server]:
    """Serve a folder while the block runs."""
    server = Server(folder)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer("HEAD")

        def do_GET(self) -> None:
            self.answer("GET")

        def answer(self, method: str) -> None:
            path = self.path.lstrip("/")
            found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            asked = Asked(method, path, int(found[1]) if found else None)
            with lock:
                number = len(server.asked)
                server.asked.append(asked)
            how = server.fault(number, asked)
            time.sleep(server.latency + how.stalls)
            file = server.folder / path
            if how.status or not (file.is_file() or file.is_dir()):
                self.begin(how.status or 404, 0)
                return
            content = how.content if how.content is not None else (listed(file) if file.is_dir() else file.read_bytes())
            if found and how.ranges and not file.is_dir():
                start, end = int(found[1]), min(int(found[2] or len(content)), len(content) - 1)
                if start >= len(content) > 0:
                    self.begin(416, 0)
                    return
                self.begin(206, end + 1 - start, f"bytes {start}-{end}/{len(content)}")
                content = content[start : end + 1]
            else:
                self.begin(200, len(content), kind="text/html" if file.is_dir() else "application/octet-stream")
            if method == "HEAD":
                return
            whole, content = len(content), content[: how.closes_after]
            with lock:
                server.sent += len(content) if file.is_file() else 0
            pieces = range(0, len(content), 2**16)
            for first in pieces:
                self.wfile.write(content[first : first + 2**16])
                if server.bandwidth:
                    time.sleep(2**16 / server.bandwidth)
            if len(content) < whole:
                self.close_connection = True

        def begin(self, status: int, length: int, span: str = "", kind: str = "application/octet-stream") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.send_header("Content-Type", kind)
            if span:
                self.send_header("Content-Range", span)
            self.end_headers()

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:  # a client that went away
            pass

    with Quiet(("127.0.0.1", port), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()


def listed(folder: Path) -> bytes:
    """Return what a server lists of a folder."""
    names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())
    return "".join(f'<a href="{name}">{name}</a>\n' for name in names).encode()
