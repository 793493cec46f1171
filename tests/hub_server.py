"""A server of Hugging Face's Hub on this machine, as far as huggingface_hub asks to list and read a data set."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

REPOSITORY = "user/corpus"
API = f"/api/datasets/{REPOSITORY}"
FILES = f"/datasets/{REPOSITORY}/resolve/main/"
COMMIT = "0" * 40


class Hub:
    """Serves the files below a folder as the data set REPOSITORY. `requests` has method and path of each."""

    def __init__(self, folder: Path) -> None:
        hub, self.folder, self.requests = self, folder, list[str]()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                hub.requests.append(f"{self.command} {self.path}")
                status, data = hub.answer(unquote(self.path), body, self.headers.get("Range"))
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("X-Repo-Commit", COMMIT)
                if status == 404:
                    self.send_header("X-Error-Code", "EntryNotFound" if API in self.path else "RepoNotFound")
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else data)

            do_HEAD = do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path: str, body: bytes, ranges: str | None) -> tuple[int, bytes]:
        place = urlsplit(path).path
        if place.startswith(FILES):
            file = self.folder / place.removeprefix(FILES)
            return self._file(file, ranges) if file.is_file() else (404, b"")
        if place in (API, f"{API}/revision/main"):
            return 200, json.dumps({"id": REPOSITORY, "sha": COMMIT, "private": False, "siblings": []}).encode()
        if place == f"{API}/commits/main":
            commit = {"id": COMMIT, "title": "", "message": "", "authors": [], "date": "2026-01-01T00:00:00.000Z"}
            return 200, json.dumps([commit]).encode()
        if place == f"{API}/paths-info/main":
            paths = [self.folder / value for name, value in parse_qsl(body.decode()) if name == "paths"]
            return 200, json.dumps([self._entry(path) for path in paths if path.exists()]).encode()
        if place.startswith(f"{API}/tree/main"):
            folder = self.folder / place.removeprefix(f"{API}/tree/main").lstrip("/")
            if not folder.is_dir():
                return 404, b""
            deep = "recursive=True" in path or "recursive=true" in path
            found = folder.rglob("*") if deep else folder.iterdir()
            return 200, json.dumps([self._entry(one) for one in sorted(found)]).encode()
        return 404, b""

    def _entry(self, path: Path) -> dict[str, Any]:
        name, data = str(path.relative_to(self.folder)), b"" if path.is_dir() else path.read_bytes()
        kind = "directory" if path.is_dir() else "file"
        return {"type": kind, "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def _file(self, file: Path, ranges: str | None) -> tuple[int, bytes]:
        data = file.read_bytes()
        if found := re.fullmatch(r"bytes=(\d+)-(\d+)", ranges or ""):
            return 206, data[int(found[1]) : int(found[2]) + 1]
        return 200, data
