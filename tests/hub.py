"""A small server that speaks what huggingface_hub needs of the hub's API."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import torch
from huggingface_hub import constants, hf_api

from encodecmae_sb.lobes import AudioEncoder, EnCodecMAE, LogMel, ResiDualTransformer

NAME = "someone/speech"


def small_encoder(seed=0, **settings):
    torch.manual_seed(seed)
    return AudioEncoder(LogMel(), ResiDualTransformer(16, 2, 2, 24, **settings)).eval()


def frames_of(source, **more):
    wavs = torch.linspace(-1, 1, 9000).sin()[None]
    return EnCodecMAE(source, input_sample_rate=24000, **more)(wavs)


class Hub:
    """Repositories in memory, on a port of this machine.

    Attributes
    ----------
    commits : dict
        (repository, commit) -> files, name -> bytes.
    branches : dict
        repository -> branch -> commit.
    created : dict
        repository -> what its creation asked for.
    asked : list of str
        Every request, "METHOD path".
    tokens : set
        Authorization headers seen.
    """

    def __init__(self):
        self.commits, self.branches, self.created = {}, {}, {}
        self.asked, self.tokens = [], set()
        hub = self

        class Handler(_Handler):
            """Requests to this hub."""

            def answer(self, method, body=b""):
                hub.asked.append(f"{method} {self.path}")
                hub.tokens.add(self.headers.get("Authorization"))
                return hub.answer(method, urlsplit(self.path), body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,)).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def commit(self, repository, files, branch="main"):
        """Adds files; gives the commit."""
        branches = self.branches.setdefault(repository, {})
        old = self.commits.get((repository, branches.get(branch)), {})
        files = {**old, **files}
        text = repr([repository, len(self.commits), sorted(files.items())]).encode()
        commit = hashlib.sha1(text).hexdigest()
        self.commits[repository, commit] = files
        branches[branch] = commit
        return commit

    def answer(self, method, url, body):
        """Status, headers and body of the answer to a request."""
        path = unquote(url.path)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.created:
                url = f"{self.url}/{name}"
                return 409, {}, {"error": "already created", "url": url}
            self.created[name] = asked
            self.commit(name, {".gitattributes": b""})
            return 200, {}, {"url": f"{self.url}/{name}"}
        if path == "/api/validate-yaml":
            return 200, {}, {"errors": [], "warnings": []}
        if path.startswith("/api/models/"):
            user, name, what, *rest = path.removeprefix("/api/models/").split("/")
            return self.api(f"{user}/{name}", what, "/".join(rest), body, url.query)
        if path.startswith("/api/"):
            return 404, {}, {"error": f"not spoken here: {path}"}
        if path == "/":
            return 200, {}, b"a hub"
        user, name, _, revision, file = path.strip("/").split("/", 4)
        commit, error = self.find(f"{user}/{name}", revision)
        if error:
            return error
        content = self.commits[f"{user}/{name}", commit].get(file)
        headers = {"X-Repo-Commit": commit}
        if content is None:
            return 404, {**headers, "X-Error-Code": "EntryNotFound"}, b""
        headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
        return 200, headers, content

    def find(self, repository, revision):
        """The commit of a revision, and an answer if there is none."""
        if repository not in self.branches:
            return None, (404, {"X-Error-Code": "RepoNotFound"}, b"")
        commit = self.branches[repository].get(revision, revision)
        if (repository, commit) not in self.commits:
            return None, (404, {"X-Error-Code": "RevisionNotFound"}, b"")
        return commit, None

    def api(self, repository, what, rest, body, query):
        if what == "branch":
            self.branches[repository][rest] = self.branches[repository]["main"]
            return 200, {}, {}
        _, error = self.find(repository, rest)
        if error:
            return error
        if what == "preupload":
            files = json.loads(body)["files"]
            answers = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in files
            ]
            return 200, {}, {"files": answers}
        if what == "commit":
            assert not parse_qs(query)
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            commit = self.commit(repository, files, rest)
            address = f"{self.url}/{repository}/commit/{commit}"
            return 200, {}, {"commitUrl": address, "commitOid": commit}
        return 404, {}, {"error": f"not spoken here: {what}"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):  # noqa: N802
        self.reply("GET")

    def do_HEAD(self):  # noqa: N802
        self.reply("HEAD")

    def do_POST(self):  # noqa: N802
        self.reply("POST")

    def reply(self, method):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, headers, content = self.answer(method, body)
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers = {**headers, "Content-Type": "application/json"}
        self.send_response(status)
        for key, value in {**headers, "Content-Length": len(content)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if method != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        """Quiet."""


def point_at(monkeypatch, url):
    """What HF_ENDPOINT does where huggingface_hub is imported later."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    # Made when huggingface_hub is imported.
    monkeypatch.setattr(hf_api.api, "endpoint", url)
