"""A fake hub: the requests by which its client creates a repository, commits to it and reads from it.

Of the documented layout only: creation, branches, preupload (small files in the commit, weights through LFS), commit,
and `resolve`, of a range of bytes too; of data sets what is read of them, files put in by the test. No Xet, no
multipart uploads, no pull requests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

WRITES, READS = "hf_thatMayWrite", "hf_thatMayRead"
"""Tokens that it accepts."""
LARGE = (".safetensors", ".onnx", ".pt2")


@dataclass
class Repository:
    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str) -> str:
        """Return forty digits that stand for what a branch holds."""
        content = sorted(
            (path, hashlib.sha1(data).hexdigest()) for path, data in self.branches[branch].items()
        )
        return hashlib.sha1(repr(content).encode()).hexdigest()


@dataclass
class Hub:
    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    """LFS: content by its SHA-256."""
    datasets: dict[str, Repository] = field(default_factory=dict)
    status: int = 0
    """That every request about a data set is answered with; 0: what there is."""
    breaks: list[int] = field(default_factory=list)
    """Bytes after which the connection of one download breaks, each once."""
    requests: list[str] = field(default_factory=list)
    broken: str = ""
    """Part of an address that is answered with 500."""
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, content: Any = b"", **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while length := int(self.rfile.readline(), 16):
                body += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
        path = unquote(self.path.partition("?")[0])
        span = self.headers.get("Range", "")
        self.hub.requests.append(f"{self.command} {path} {span}".rstrip())
        if self.hub.broken and self.hub.broken in path:
            return self._answer(422, {"error": "the disk is full"})
        if path.startswith("/lfs/"):  # a signed address of a store, which asks for no token
            self.hub.stored[path.removeprefix("/lfs/")] = body
            return self._answer(200)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in ("", WRITES, READS):
            return self._answer(
                401,
                {"error": "Invalid credentials"},
                X_Error_Message="Invalid credentials in Authorization header",
            )
        if self.command in ("GET", "HEAD"):
            return self._read(path, token)
        if token != WRITES and path != "/api/validate-yaml":
            return self._answer(
                403, {"error": "no write access"}, X_Error_Message="no write access"
            )
        return self._write(path, body)

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815

    def _read(self, path: str, token: str) -> None:
        if path == "/":
            return self._answer(200)
        if path.startswith(("/datasets/", "/api/datasets/")):
            return self._read_dataset(path, token)
        name, _, rest = path.removeprefix("/api/models").strip("/").partition("/resolve/")
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not token):
            return self._answer(404, X_Error_Code="RepoNotFound")
        if path.startswith("/api/models/"):
            return self._answer(
                200, {"id": name, "private": repository.private, "sha": repository.commit("main")}
            )
        branch, _, file = rest.partition("/")
        if branch not in repository.branches:
            branch = next((b for b in repository.branches if repository.commit(b) == branch), "")
        if not branch or file not in repository.branches[branch]:
            return self._answer(404, X_Error_Code="EntryNotFound" if branch else "RevisionNotFound")
        data = repository.branches[branch][file]
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        commit, span = repository.commit(branch), self.headers.get("Range", "")
        if span:
            first, last = map(int, span.removeprefix("bytes=").split("-"))
            return self._answer(206, data[first : last + 1], ETag=etag, X_Repo_Commit=commit)
        return self._answer(200, data, ETag=etag, X_Repo_Commit=commit)

    def _read_dataset(self, path: str, token: str) -> None:
        owner, name, verb, rest = path.partition("datasets/")[2].split("/", 3)
        repository = self.hub.datasets.get(f"{owner}/{name}")
        if self.hub.status:
            code = {"X_Error_Code": "GatedRepo"} if self.hub.status == 403 else {}
            return self._answer(self.hub.status, **code)
        if repository is None or (repository.private and not token):
            return self._answer(401, X_Error_Code="RepoNotFound")
        names = {b: b for b in repository.branches} | {
            repository.commit(b): b for b in repository.branches
        }
        at = next((n for n in names if f"{rest}/".startswith(f"{n}/")), "")
        if not at:
            return self._answer(404, X_Error_Code="RevisionNotFound")
        files, commit = repository.branches[names[at]], repository.commit(names[at])
        if verb == "revision":
            return self._answer(200, {"id": f"{owner}/{name}", "sha": commit, "siblings": []})
        if verb == "tree":
            entries = [
                {
                    "type": "file",
                    "path": p,
                    "size": len(data),
                    "oid": hashlib.sha1(data).hexdigest(),
                }
                for p, data in files.items()
            ]
            return self._answer(200, entries)
        file = rest[len(at) + 1 :]
        if file not in files:
            return self._answer(404, X_Error_Code="EntryNotFound")
        return self._send_file(files[file], commit)

    def _send_file(self, data: bytes, commit: str) -> None:
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1 if last else None]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "HEAD":
            return
        is_broken = self.hub.breaks and self.hub.breaks[0] < len(part)
        size = self.hub.breaks.pop(0) if is_broken else len(part)
        self.wfile.write(part[:size])
        if size < len(part):
            self.close_connection = True
            self.connection.close()

    def _write(self, path: str, body: bytes) -> None:
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            request = json.loads(body)
            name = f"{request['organization'] or 'me'}/{request['name']}"
            if name in self.hub.repositories:
                return self._answer(
                    409,
                    {
                        "error": "You already created this model repo",
                        "url": f"{self.hub.url}/{name}",
                    },
                )
            private = request.get("private") or request.get("visibility") == "private"
            self.hub.repositories[name] = Repository(bool(private))
            return self._answer(200, {"url": f"{self.hub.url}/{name}"})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {
                    **o,
                    "actions": None
                    if o["oid"] in self.hub.stored
                    else {"upload": {"href": f"{self.hub.url}/lfs/{o['oid']}"}},
                }
                for o in json.loads(body)["objects"]
            ]
            objects = [{k: v for k, v in o.items() if v is not None} for o in objects]
            return self._answer(200, {"transfer": "basic", "objects": objects})
        owner, name, verb, branch = path.removeprefix("/api/models/").split("/", 3)
        repository = self.hub.repositories[f"{owner}/{name}"]
        if verb == "branch":
            repository.branches.setdefault(branch, dict(repository.branches["main"]))
            return self._answer(200, {})
        if verb == "preupload":
            files = [f["path"] for f in json.loads(body)["files"]]
            modes = {f: "lfs" if f.endswith(LARGE) else "regular" for f in files}
            return self._answer(
                200,
                {
                    "files": [
                        {"path": f, "uploadMode": m, "shouldIgnore": False}
                        for f, m in modes.items()
                    ]
                },
            )
        assert verb == "commit", path
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repository.messages.append(value["summary"])
            else:
                sent = line["key"] == "file"
                data = base64.b64decode(value["content"]) if sent else self.hub.stored[value["oid"]]
                repository.branches[branch][value["path"]] = data
        oid = repository.commit(branch)
        return self._answer(
            200, {"commitUrl": f"{self.hub.url}/{owner}/{name}/commit/{oid}", "commitOid": oid}
        )


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a hub on a free port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def connect(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Hub]:
    """Run a hub that this process's client takes for the hub, with an empty cache below a folder."""
    with serve() as served:
        # the template of addresses is made of it at import
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            f"{served.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
        monkeypatch.setenv("HF_HUB_CACHE", str(folder / "hub"))
        monkeypatch.setenv("HF_HOME", str(folder / "home"))
        yield served
