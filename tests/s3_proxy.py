"""Stands between clients and an S3 server, and answers in its place, late, in part or not at all."""

from __future__ import annotations

import http.client
import itertools
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Answer = Callable[[BaseHTTPRequestHandler], None]


class Proxy:
    """`fault(handler)` may answer a request in the server's place; `away` refuses all connections.

    Without `of` only requests for a shard are given to `fault`; with it those of which it says so.
    """

    def __init__(self, url: str) -> None:
        self.of: Callable[[BaseHTTPRequestHandler], bool] = lambda one: "shard" in one.path and one.command == "GET"
        self.fault: Callable[[BaseHTTPRequestHandler], bool] = lambda handler: False
        self.requests: list[str] = []
        """Method and path of each, in the order in which they came."""
        self.target = urlsplit(url)
        self.away = False
        self._open(0)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def shard_gets(self) -> int:
        return sum(request.startswith("GET") and "shard" in request for request in self.requests)

    def go_away(self) -> None:
        """Refuse connections, and drop those that are open at their next request."""
        self.away = True
        self.server.shutdown()
        self.server.server_close()

    def come_back(self) -> None:
        self.away = False
        self._open(self.port)

    def close(self) -> None:
        if not self.away:
            self.go_away()

    def _open(self, port: int) -> None:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                proxy.requests.append(f"{self.command} {self.path}")
                body = body_of(self)
                if proxy.away:
                    reset(self)
                elif not (proxy.of(self) and proxy.fault(self)):
                    proxy._forward(self, body)

            do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = block_on_close = False

        self.server = Server(("127.0.0.1", port), Handler, bind_and_activate=False)
        self.server.daemon_threads = True
        self.server.allow_reuse_address = True
        self.server.server_bind()
        self.server.server_activate()
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def _forward(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        connection = http.client.HTTPConnection(self.target.hostname or "", self.target.port, timeout=30)
        headers = {name: value for name, value in handler.headers.items() if name.lower() != "transfer-encoding"}
        connection.request(handler.command, handler.path, body, headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        handler.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection"):
                handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)


def body_of(handler: BaseHTTPRequestHandler) -> bytes:
    """What a request brings, of known length or in chunks."""
    if handler.headers.get("Transfer-Encoding") != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    body = b""
    while size := int(handler.rfile.readline().split(b";")[0], 16):
        body += handler.rfile.read(size)
        handler.rfile.readline()
    while handler.rfile.readline().strip():
        pass
    return body


def first(count: int, answer: Answer) -> Callable[[BaseHTTPRequestHandler], bool]:
    """The fault that `answer` takes the place of the first `count` answers."""
    lock, left = threading.Lock(), [count]

    def fault(handler: BaseHTTPRequestHandler) -> bool:
        with lock:
            left[0] -= 1
            if left[0] < 0:
                return False
        answer(handler)
        return True

    return fault


def each(number: int, *answers: Answer) -> Callable[[BaseHTTPRequestHandler], bool]:
    """The fault that `answers` in turn take the place of each so-and-so-manieth answer."""
    lock, count = threading.Lock(), itertools.count(1)

    def fault(handler: BaseHTTPRequestHandler) -> bool:
        with lock:
            now = next(count)
        if now % number:
            return False
        answers[now // number % len(answers)](handler)
        return True

    return fault


def always(answer: Answer) -> Callable[[BaseHTTPRequestHandler], bool]:
    return first(10**9, answer)


def status(code: int) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def broken_off(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"x" * 10)
    handler.close_connection = True


def reset(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    handler.connection.close()


def silent(handler: BaseHTTPRequestHandler) -> None:
    """Accepts and never answers."""
    time.sleep(20)
    reset(handler)


def trickling(handler: BaseHTTPRequestHandler) -> None:
    """A byte every tenth of a second."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    for _ in range(200):
        try:
            handler.wfile.write(b"x")
        except OSError:
            break
        time.sleep(0.1)
    handler.close_connection = True
