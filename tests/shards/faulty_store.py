"""An HTTP server whose answers can be made to fail, and readers that run in processes of their own."""

from __future__ import annotations

import hashlib
import http.client
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit


@dataclass
class FaultyStore:
    """Serves a folder, or hands all requests on to another server."""

    origin: Path | str
    faults: dict[str, Iterator[str]] = field(default_factory=dict)
    """By method and file name, as ``GET 000001.tar``: what goes wrong with one request after another."""
    delay_s: float = 0.0
    """Before each answer."""
    tells_size: bool = True
    requests: list[str] = field(default_factory=list)
    """Method and file name of each, in the order of their arrival."""
    most_at_once: int = 0
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> FaultyStore:
        store = self

        class Handler(_Handler):
            pass

        Handler.store = store
        self.stopping = threading.Event()
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def count(self, method: str = "GET", suffix: str = ".tar") -> Counter[str]:
        """How often each file was asked for."""
        words = [request.split(" ") for request in self.requests]
        return Counter(name for seen, name in words if seen == method and name.endswith(suffix))

    def begin(self, request: str) -> str | None:
        with self._lock:
            self.requests.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            return next(self.faults.get(request, iter(())), None)

    def end(self) -> None:
        with self._lock:
            self._at_once -= 1

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        if isinstance(self.origin, Path):
            file = self.origin / urlsplit(path).path.rpartition("/")[2]
            return (200, {}, file.read_bytes()) if file.is_file() else (404, {}, b"")
        connection = http.client.HTTPConnection(urlsplit(self.origin).netloc)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        pass  # the client went away


class _Handler(BaseHTTPRequestHandler):
    store: FaultyStore
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def _serve(self) -> None:
        store = self.store
        request = f"{self.command} {urlsplit(self.path).path.rpartition('/')[2]}"
        fault = store.begin(request)
        try:
            time.sleep(store.delay_s)
            if fault == "hangup":
                self.close_connection = True
                return
            if fault == "silent":
                self._wait()
            status, headers, body = store.answer(self.command, self.path, dict(self.headers))
            if fault is not None and fault.isdigit():
                status, headers, body = int(fault), {}, b"something went wrong"
            self._send(status, headers, body, fault)
        finally:
            store.end()

    def _send(self, status: int, headers: dict[str, str], body: bytes, fault: str | None) -> None:
        half = len(body) // 2
        if fault == "wrong":
            body = body[:half] + bytes([body[half] ^ 1]) + body[half + 1 :]
        elif fault in ("short", "long"):
            body = body[:half] if fault == "short" else body + bytes(1000)
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "date", "server", "transfer-encoding"):
                self.send_header(name, value)
        if self.store.tells_size and fault not in ("unsized", "endless"):
            length = headers.get("Content-Length", len(body)) if self.command == "HEAD" else len(body)
            self.send_header("Content-Length", str(length))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "GET":
            broken = fault in ("cut", "unsized", "stall", "trickle", "endless")
            self.wfile.write(body[:half] if broken else body)
            self.close_connection |= broken
            self._go_on(fault)

    def _go_on(self, fault: str | None) -> None:
        if fault == "stall":
            self._wait()
        while fault in ("trickle", "endless") and not self.store.stopping.wait(0.02 if fault == "trickle" else 0):
            self.wfile.write(bytes(1 if fault == "trickle" else 10_000))

    def _wait(self) -> None:
        self.store.stopping.wait(60)
        raise ConnectionAbortedError

    def log_message(self, *_: object) -> None:
        pass


def digests(url: str, folder: Path, max_bytes: int, order: list[int]) -> list[str]:
    """Of each sample's image, read in this order through a cache."""
    from fastssl.shards import JPEG, ShardSet
    from fastssl.shards.cache import Cache

    shards = ShardSet(url, Cache(folder, max_bytes))
    found = []
    for turn, index in enumerate(order):
        shards.prefetch(order[turn : turn + 2])  # each shard holds one sample
        found.append(hashlib.sha256(shards.member(index, JPEG)).hexdigest())
    return found
