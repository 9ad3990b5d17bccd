"""A small Hugging Face Hub on this machine: repositories of a few files, served with the real one's headers."""

import contextlib
import hashlib
import http.server
import json
import threading
from urllib.parse import unquote


class Hub:
    """Repositories by name, each a dict of file names to bytes; what is asked for is noted.

    The files of `gated` repositories are refused with 401. `cut` maps a file's name to the number of bytes that its
    body has instead of all. While the Hub is `down` it answers 503 to everything.
    """

    def __init__(self):
        self.repositories, self.gated, self.cut, self.asked, self.down = {}, set(), {}, [], False
        self.revisions = {"main"}

    def commit(self, name: str) -> str:
        content = repr(sorted(self.repositories[name].items())).encode()
        return hashlib.sha1(content).hexdigest()

    def answer(self, method: str, path: str, start: int = 0) -> tuple[int, dict, bytes]:
        """Status, headers and body for a request, the body from byte `start` on."""
        self.asked.append(f"{method} {path}")
        if self.down:
            return 503, {}, b""
        api = path.startswith("/api/models/")
        owner, repository, _, revision, *rest = path.removeprefix("/api/models").strip("/").split("/")
        name = f"{owner}/{repository}"
        if name in self.gated and not api:  # whose files are listed
            return 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to it is restricted"}, b""
        if name not in self.repositories:
            return 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b""
        commit = self.commit(name)
        if revision not in {*self.revisions, commit}:
            return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"}, b""
        files = self.repositories[name]
        if api:
            siblings = [{"rfilename": file} for file in files]
            body = json.dumps({"_id": "0", "id": name, "modelId": name, "sha": commit, "siblings": siblings}).encode()
            return 200, {"Content-Type": "application/json", "Content-Length": len(body)}, body
        file = "/".join(rest)
        if file not in files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        body = files[file]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Linked-Size": len(body)}
        if method == "GET":
            body = body[start : self.cut.get(file, len(body))]
        if start:
            headers["Content-Range"] = f"bytes {start}-{start + len(body) - 1}/{len(files[file])}"
        return 206 if start else 200, {**headers, "Content-Length": len(body)}, body


@contextlib.contextmanager
def serving(hub: Hub):
    """The address of a server for `hub`, while the block runs."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            start = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0]
            status, headers, body = hub.answer(self.command, unquote(self.path.partition("?")[0]), int(start))
            self.send_response(status)
            for key, value in {"Content-Length": len(body), **headers}.items():
                self.send_header(key, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
