"""A stand-in for the hub's endpoint on loopback: data sets as folders, asked for as huggingface_hub does."""

import json
import re
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Data sets by OWNER/NAME, each a folder.  Those of `closed` are refused to who shows no token."""

    datasets: dict[str, Path]
    closed: set[str] = field(default_factory=set)
    failing: int = 0  # of the next requests for bytes, so many get a 503
    url: str = ""
    asked: list[str] = field(default_factory=list)  # method and path of each request


@contextmanager
def hub(**datasets: Path) -> Iterator[Hub]:
    """Serve data sets while the block runs; `__` in a name stands for `/`."""
    served = Hub({name.replace("__", "/"): folder for name, folder in datasets.items()})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.answer("GET")

        def do_HEAD(self) -> None:
            self.answer("HEAD")

        def do_POST(self) -> None:
            self.answer("POST")

        def answer(self, method: str) -> None:
            address = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            served.asked.append(f"{method} {address.path}")
            found = re.fullmatch(
                r"/(?:api/)?datasets/([^/]+/[^/]+)(?:/(\w[\w-]*)(?:/([^/]+)(?:/(.*))?)?)?", address.path
            )
            if not found or found[1] not in served.datasets:
                self.refuse(401, "RepoNotFound")  # as the hub answers who is not logged in
                return
            folder = served.datasets[found[1]]
            what, path = found[2], unquote(found[4] or "")
            if found[1] in served.closed and not self.headers.get("Authorization"):
                self.refuse(401, "GatedRepo")
            elif what in (None, "revision"):
                self.give({"id": found[1], "sha": COMMIT, "private": False, "tags": [], "siblings": []})
            elif what == "tree":
                self.give([entry(folder, file) for file in sorted((folder / path).iterdir())])
            elif what == "paths-info":
                form = json.loads(body) if body[:1] == b"{" else parse_qs(body.decode())
                files = [folder / name for name in form["paths"]]
                self.give([entry(folder, file) for file in files if file.exists()])
            elif served.failing:
                served.failing -= 1
                self.refuse(503, "")
            elif (folder / path).is_file():
                self.give_range((folder / path).read_bytes())
            else:
                self.refuse(404, "EntryNotFound")

        def give(self, value: Any) -> None:
            self.send(200, json.dumps(value).encode(), "application/json")

        def give_range(self, content: bytes) -> None:
            span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if not span:
                self.send(200, content, "application/octet-stream")
                return
            part = content[int(span[1]) : int(span[2]) + 1]
            whole = f"bytes {span[1]}-{int(span[1]) + len(part) - 1}/{len(content)}"
            self.send(206, part, "application/octet-stream", {"Content-Range": whole})

        def refuse(self, status: int, code: str) -> None:
            self.send(status, b"{}", "application/json", {"X-Error-Code": code, "X-Error-Message": "as it stands"})

        def send(self, status: int, content: bytes, kind: str, others: dict[str, str] | None = None) -> None:
            self.send_response(status)
            headers = {"Content-Length": str(len(content)), "Content-Type": kind, "X-Repo-Commit": COMMIT}
            for name, value in (headers | (others or {})).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:  # a client that went away
            pass

    with Quiet(("127.0.0.1", 0), Handler) as http:
        served.url = f"http://127.0.0.1:{http.server_port}"
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield served
        finally:
            http.shutdown()


def entry(folder: Path, file: Path) -> dict[str, Any]:
    """Return what the hub says of a file or a folder."""
    name = file.relative_to(folder).as_posix()
    if file.is_dir():
        return {"type": "directory", "oid": COMMIT, "size": 0, "path": name}
    return {"type": "file", "oid": COMMIT, "size": file.stat().st_size, "path": name}


@dataclass
class ModelsHub:
    """Models that were uploaded, as folders OWNER/NAME below one.  A `closed` one takes nothing."""

    folder: Path
    closed: bool = False
    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)  # of Git LFS, by hash


@contextmanager
def models_hub(folder: Path) -> Iterator[ModelsHub]:
    """Take uploads of models into a folder while the block runs, as huggingface_hub makes them without hf_xet."""
    served = ModelsHub(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_PUT(self) -> None:
            served.objects[self.path.rpartition("/")[2]] = self.body()
            self.send(200, {})

        def do_GET(self) -> None:
            self.send(200, {"id": self.path, "sha": COMMIT, "siblings": [], "tags": [], "private": False})

        def do_POST(self) -> None:
            path, body = urlsplit(self.path).path, self.body()
            if served.closed or not self.headers.get("Authorization"):
                self.send(403, {"error": "you may not write here"})
            elif path == "/api/repos/create":
                said = json.loads(body)
                self.send(200, {"url": f"{served.url}/{said['organization']}/{said['name']}"})
            elif path == "/api/validate-yaml":
                self.send(200, {"warnings": [], "errors": []})
            elif "/preupload/" in path:
                self.send(200, {"files": [
                    {"path": file["path"], "shouldIgnore": False,
                     "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
                    for file in json.loads(body)["files"]
                ]})  # fmt: skip
            elif path.endswith("/objects/batch"):
                self.send(200, {"transfer": "basic", "objects": [
                    {**one, "actions": {"upload": {"href": f"{served.url}/objects/{one['oid']}", "header": {}}}}
                    for one in json.loads(body)["objects"]
                ]})  # fmt: skip
            else:
                name = re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path)
                assert name, path
                self.commit(served.folder / name[1], body)
                self.send(200, {"commitUrl": f"{served.url}/{name[1]}/commit/{COMMIT}", "commitOid": COMMIT})

        def commit(self, model: Path, body: bytes) -> None:
            model.mkdir(parents=True, exist_ok=True)
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    (model / value["path"]).write_bytes(b64decode(value["content"]))
                elif line["key"] == "lfsFile":
                    (model / value["path"]).write_bytes(served.objects[value["oid"]])

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def send(self, status: int, value: Any) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        served.url = f"http://127.0.0.1:{http.server_port}"
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield served
        finally:
            http.shutdown()
