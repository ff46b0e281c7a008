"""A hub on this machine: the few endpoints of the Hugging Face hub that pushing and loading a file need, kept in memory."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import huggingface_hub
from huggingface_hub import constants


@dataclass
class Hub:
    """Repositories by name, each with its files by branch; requests in order; who may write and what is private."""

    url: str = ""
    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    created: list[dict] = field(default_factory=list)
    status: int = 200


def ask(patch, url: str, cache: Path) -> None:
    """Lets huggingface_hub ask a hub at this address, as HF_ENDPOINT, HF_HUB_CACHE and HF_TOKEN do for a new process."""
    patch.setattr(constants, "ENDPOINT", url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setenv("HF_TOKEN", "a-token")


@contextmanager
def running(patch, cache: Path) -> Iterator[Hub]:
    """A hub that huggingface_hub asks instead of its own, with an empty cache."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Asked", (_Asked,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    ask(patch, hub.url, cache)
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        huggingface_hub.close_session()


class _Asked(BaseHTTPRequestHandler):
    hub: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.hub.requests.append(f"POST {self.path}")
        if self.hub.status != 200:
            return self._answer(self.hub.status, {"error": "not now"})
        match self.path.split("?")[0].strip("/").split("/"):
            case ["api", "validate-yaml"]:
                return self._answer(200, {"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                return self._create(json.loads(body))
            case ["api", "models", owner, name, "preupload", _]:
                files = [each["path"] for each in json.loads(body)["files"]]
                return self._answer(200, {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]})
            case ["api", "models", owner, name, "commit", revision]:
                return self._commit(f"{owner}/{name}", unquote(revision), [json.loads(line) for line in body.splitlines()])
        return self._answer(404, {"error": "no such endpoint"})

    def _create(self, asked: dict) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        self.hub.created.append(asked)
        known = name in self.hub.repositories
        self.hub.repositories.setdefault(name, {"main": {}})
        self._answer(409 if known else 200, {"url": f"{self.hub.url}/{name}"})

    def _commit(self, name: str, revision: str, lines: list[dict]) -> None:
        files = self.hub.repositories[name].setdefault(revision, {})
        files |= {each["value"]["path"]: base64.b64decode(each["value"]["content"]) for each in lines if each["key"] == "file"}
        self._answer(200, {"success": True, "commitOid": _commit(files), "commitUrl": f"{self.hub.url}/{name}/commit/{_commit(files)}"})

    def do_HEAD(self) -> None:
        self._file(body=False)

    def do_GET(self) -> None:
        self._file(body=True)

    def _file(self, body: bool) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        owner, name, resolve, revision, path = [*self.path.strip("/").split("/", 4), "", "", "", ""][:5]
        if resolve != "resolve":
            return self._answer(404, {})
        branches = self.hub.repositories.get(f"{owner}/{name}")
        if self.hub.status != 200:
            return self._answer(self.hub.status, {})
        if branches is None:
            return self._answer(404, {}, {"X-Error-Code": "RepoNotFound"})
        files = branches.get(revision) or next((each for each in branches.values() if _commit(each) == revision), None)
        if files is None:
            return self._answer(404, {}, {"X-Error-Code": "RevisionNotFound"})
        if path not in files:
            return self._answer(404, {}, {"X-Error-Code": "EntryNotFound"})
        found = files[path]
        self.send_response(200)
        for header, value in (("ETag", f'"{_digest(found)}"'), ("X-Repo-Commit", _commit(files)), ("Content-Length", str(len(found)))):
            self.send_header(header, value)
        self.end_headers()
        if body:
            self.wfile.write(found)
        return None

    def _answer(self, status: int, facts: dict, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(facts).encode()
        self.send_response(status)
        for header, value in ({"Content-Type": "application/json", "Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_what: object) -> None:
        """Says nothing."""


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def _commit(files: dict[str, bytes]) -> str:
    return _digest(b"".join(path.encode() + data for path, data in sorted(files.items())))
