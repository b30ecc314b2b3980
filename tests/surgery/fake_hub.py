"""A hub of our own: enough of the Hugging Face hub's HTTP interface for huggingface_hub to read from and write to.

It keeps every request, so that a test can say what was asked for.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "1234567890abcdef1234567890abcdef12345678"
TOKEN = "hf_of_the_test"


@dataclass
class Repository:
    """A model on the fake hub: its files, the one commit it has, and who may see it."""

    files: dict[str, bytes]
    gated: bool = False
    private: bool = False
    branches: set[str] = field(default_factory=lambda: {"main"})


@dataclass
class FakeHub:
    """The hub's repositories by id, and what was asked of it: ("GET", "/path") and so on."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    read_only: bool = False

    def add(self, name: str, folder: Path, **options: Any) -> Repository:
        """Put the files of a folder on the hub."""
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.repositories[name] = Repository(files, **options)
        return self.repositories[name]

    def asked_for(self) -> list[str]:
        """Return the names of the files that were asked for, each once, in order; their metadata counts as well."""
        found = [re.search(r"/resolve/[^/]+/(.+)$", path) for _, path in self.requests]
        return list(dict.fromkeys(match[1] for match in found if match))


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _answer(self, status: int, data: Any = b"", **headers: str) -> None:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def _repository(self, name: str, revision: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._has_token()):
            self._refuse(401, "RepoNotFound")
        elif revision != COMMIT and revision not in repository.branches:
            self._refuse(404, "RevisionNotFound")
        else:
            return repository
        return None

    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append((self.command, path))
        if path == "/api/whoami-v2":
            return (
                self._answer(200, {"name": "me", "type": "user", "orgs": []})
                if self._has_token()
                else (self._refuse(401, "Unauthorized"))
            )
        if found := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            return self._file(*found.groups())
        if found := re.fullmatch(r"/api/models/(.+?)/tree/([^/]+)", path):
            return self._tree(*found.groups())
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            return self._info(found[1], found[2] or "main")
        return self._answer(404)

    def _file(self, name: str, revision: str, file: str) -> None:
        repository = self._repository(name, revision)
        if repository is None:
            return None
        if repository.gated and not self._has_token():
            return self._refuse(403, "GatedRepo")
        if file not in repository.files:
            return self._answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        data = repository.files[file]
        etag = hashlib.sha256(data).hexdigest()
        return self._answer(200, data, ETag=f'"{etag}"', X_Repo_Commit=COMMIT)

    def _tree(self, name: str, revision: str) -> None:
        repository = self._repository(name, revision)
        if repository is not None:
            entries = [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in repository.files.items()
            ]
            self._answer(200, entries)

    def _info(self, name: str, revision: str) -> None:
        repository = self._repository(name, revision)
        if repository is not None:
            siblings = [{"rfilename": path} for path in repository.files]
            private = repository.private
            self._answer(200, {"id": name, "sha": COMMIT, "private": private, "siblings": siblings, "tags": []})

    def do_POST(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append((self.command, path))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if not self._has_token():
            return self._refuse(401, "Unauthorized")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if self.hub.read_only:
            return self._answer(403, {"error": "Forbidden"})
        if found := re.fullmatch(r"/api/models/(.+?)/branch/([^/]+)", path):
            self.hub.repositories[found[1]].branches.add(found[2])
            return self._answer(200, {})
        if "/preupload/" in path:
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        if found := re.fullmatch(r"/api/models/(.+?)/commit/([^/]+)", path):
            return self._commit(found[1], body)
        return self._answer(404)

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if self.hub.read_only:
            return self._answer(403, {"error": "Forbidden"})
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        address = f"http://{self.headers['Host']}/{name}"
        if name in self.hub.repositories:
            return self._answer(409, {"error": "You already created this model repo", "url": address})
        self.hub.repositories[name] = Repository({}, private=private)
        return self._answer(200, {"url": address, "name": name, "id": name})

    def _commit(self, name: str, body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                value = entry["value"]
                self.hub.repositories[name].files[value["path"]] = base64.b64decode(value["content"])
        address = f"http://{self.headers['Host']}/{name}/commit/{COMMIT}"
        self._answer(200, {"success": True, "commitOid": COMMIT, "commitUrl": address})


@contextmanager
def fake_hub(cache: Path, patch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Run a fake hub, and let huggingface_hub use it and an empty cache until the end."""
    from huggingface_hub import constants
    from transformers.utils import hub as transformers_hub

    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    patch.setattr(constants, "ENDPOINT", endpoint)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(transformers_hub, "_hf_api", None, raising=False)  # it remembers the endpoint of its first use
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        patch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        patch.delenv(name, raising=False)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
