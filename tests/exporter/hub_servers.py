"""Stand-ins for Kaggle and Hugging Face on this machine, for the real clients to talk to.

They answer what `kagglehub` and `huggingface_hub` ask for when they download, in the way the hubs do:
a redirect to a storage server that knows ranges and gives a checksum. They keep a log of what was
asked for, and can deny, go down, or cut the connection in the middle of a file.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

Files = dict[str, bytes]


class Request(NamedTuple):
    """A request for a file's content: its name, and the first byte asked for."""

    name: str
    start: int


class Answer(NamedTuple):
    """What a server answers."""

    status: int
    headers: dict[str, str]
    body: bytes = b""


class HubServer:
    """An HTTP server in a thread; use as a context manager.

    Attributes:
        calls: `"METHOD path"` of all requests, in order.
        contents: the requests for a file's content.
        cut: names of files to bytes after which the connection breaks, once.
        down: names of files that are refused with 503, but for a cut that is to come.
        denied: status and headers that all questions are answered with, if set.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.contents: list[Request] = []
        self.cut: dict[str, int] = {}
        self.down: set[str] = set()
        self.denied: tuple[int, dict[str, str]] | None = None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                hub.handle(self)

            do_HEAD = do_POST = do_GET  # noqa: N815

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """Goes away: whoever connects from now on is refused."""
        self._server.shutdown()
        self._server.server_close()

    def requested(self) -> set[str]:
        """Names of the files whose content was asked for."""
        return {request.name for request in self.contents}

    def handle(self, http: BaseHTTPRequestHandler) -> None:
        """Answers one request."""
        path = unquote(urlsplit(http.path).path)
        self.calls.append(f"{http.command} {path}")
        size = int(http.headers.get("Content-Length", 0))
        question = json.loads(http.rfile.read(size)) if size else {}
        found = self.answer(http.command, path, question)
        if isinstance(found, Answer):
            send(http, found)
        else:
            self.send_file(http, *found)

    def answer(self, method: str, path: str, question: dict) -> Answer | tuple[str, bytes, dict]:
        """An answer, or a file as its name, content and headers."""
        raise NotImplementedError

    def send_file(self, http, name: str, content: bytes, headers: dict[str, str]) -> None:
        """Sends a file or the rest of it, or breaks off in between."""
        if http.command == "HEAD":
            send(http, Answer(200, {**headers, "Content-Length": str(len(content))}))
            return
        start = int((http.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.contents.append(Request(name, start))
        if name in self.down and name not in self.cut:
            send(http, Answer(503, {}))
            return
        end = self.cut.pop(name, len(content))
        http.send_response(206 if start else 200)
        if start:
            http.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for key, value in {"Accept-Ranges": "bytes", **headers}.items():
            http.send_header(key, value)
        http.send_header("Content-Length", str(len(content) - start))
        http.end_headers()
        http.wfile.write(content[start:end])


def send(http: BaseHTTPRequestHandler, answer: Answer) -> None:
    http.send_response(answer.status)
    for key, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
        http.send_header(key, value)
    http.end_headers()
    if http.command != "HEAD":
        http.wfile.write(answer.body)


def as_json(value: object, status: int = 200) -> Answer:
    return Answer(status, {"Content-Type": "application/json"}, json.dumps(value).encode())


def commit_of(repository: str, revision: str = "main") -> str:
    """The commit that a revision of a repository is at."""
    return hashlib.sha1(f"{repository}@{revision}".encode()).hexdigest()


class HuggingFaceServer(HubServer):
    """Serves repositories; set `HF_ENDPOINT` to its `url`.

    Args:
        repositories: `user/repository` to revision to files.
    """

    def __init__(self, repositories: dict[str, dict[str, Files]]) -> None:
        super().__init__()
        self.repositories = repositories

    def environment(self) -> dict[str, str]:
        """What makes the client come here."""
        return {"HF_ENDPOINT": self.url}

    def answer(self, method, path, question):
        if self.denied:
            return Answer(*self.denied)
        if path.startswith("/api/models/"):
            return self._api(path.removeprefix("/api/models/").split("/"))
        repository, _, rest = path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        commit, files = self._files(repository, revision) or ("", {})
        if name not in files:
            return Answer(404, {"X-Error-Code": "EntryNotFound"})
        etag = hashlib.sha256(files[name]).hexdigest()
        return name, files[name], {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}

    def _files(self, repository, revision):
        for name, files in self.repositories.get(repository, {}).items():
            commit = commit_of(repository, name)
            if revision in (name, commit):
                return commit, files
        return None

    def _api(self, parts):
        repository, kind = "/".join(parts[:2]), parts[2] if len(parts) > 2 else "revision"
        if repository not in self.repositories:
            return Answer(401, {"X-Error-Code": "RepoNotFound"})  # so the hub says without a token
        found = self._files(repository, "/".join(parts[3:]) or "main")
        if found is None:
            return Answer(404, {"X-Error-Code": "RevisionNotFound"})
        commit, files = found
        if kind == "tree":
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": commit}
                for name, content in files.items()
            ]
            return as_json(entries)
        siblings = [{"rfilename": name} for name in files]
        return as_json({"id": repository, "sha": commit, "siblings": siblings})


class KaggleServer(HubServer):
    """Serves models, as the proxy through which the client reaches its API and storage.

    The client's addresses are fixed; but it goes through the proxy of its environment.

    Args:
        models: `user/model/framework/variation/version` to files.
    """

    def __init__(self, models: dict[str, Files]) -> None:
        super().__init__()
        self.models = models

    def environment(self) -> dict[str, str]:
        """What makes the client come here."""
        return {"KAGGLE_API_ENVIRONMENT": "LOCALHOST", "http_proxy": self.url, "no_proxy": "127.0.0.1"}

    def answer(self, method, path, question):
        if self.denied:
            status, headers = self.denied
            return as_json({"code": status, "message": "no"}, status)._replace(headers=headers)
        if method == "GET":
            model, _, name = path.lstrip("/").partition("//")
            content = self.models[model][name]
            checksum = base64.b64encode(hashlib.md5(content).digest()).decode()
            return name, content, {"x-goog-hash": f"crc32c=AAAAAA==,md5={checksum}"}
        framework = question["framework"].removeprefix("MODEL_FRAMEWORK_").lower()
        keys = ("ownerSlug", "modelSlug", None, "instanceSlug")
        model = "/".join(question[key] if key else framework for key in keys)
        versions = [
            int(name.rpartition("/")[2]) for name in self.models if name.startswith(f"{model}/")
        ]
        version = question.get("versionNumber") or max(versions, default=0)
        files = self.models.get(f"{model}/{version}")
        name = question.get("path")
        if files is None or (name and name not in files):
            return as_json({"code": 404, "message": "not found"}, 404)
        service = path.rpartition("/")[2]
        if service == "GetModelInstance":
            return as_json({"id": 1, "slug": model.rpartition("/")[2], "versionNumber": version})
        if service == "ListModelInstanceVersionFiles":
            return as_json({"files": [{"name": name} for name in files], "nextPageToken": ""})
        assert service == "DownloadModelInstanceVersion", service
        location = f"http://storage.test/{model}/{version}//{quote(name)}"
        return Answer(302, {"Location": location})
