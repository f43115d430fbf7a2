"""A real S3-compatible server, and a proxy before it that fails as networks do."""

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
from moto.server import ThreadedMotoServer

KEY, SECRET = "AKIATESTOFDPIPE00000", "this-is-the-very-secret-key-of-the-test"
BUCKET = "rows"

#: What to do with a request, by its number: "" lets it through.
Fault = Callable[[int], str]


class Store:
    """A running server with one bucket."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.options = self.options_at(endpoint)
        self.client = boto3.client(
            "s3", endpoint_url=endpoint, aws_access_key_id=KEY, aws_secret_access_key=SECRET
        )
        self.client.create_bucket(Bucket=BUCKET)

    @staticmethod
    def options_at(endpoint: str, **config: object) -> dict:
        """Give the storage options for an address."""
        return {
            "key": KEY,
            "secret": SECRET,
            "endpoint_url": endpoint,
            "config_kwargs": {"connect_timeout": 2, "read_timeout": 2, **config},
        }

    def put(self, name: str, content: bytes) -> str:
        """Store an object and give its address."""
        self.client.put_object(Bucket=BUCKET, Key=name, Body=content)
        return f"s3://{BUCKET}/{name}"


@contextlib.contextmanager
def object_store() -> Iterator[Store]:
    """Start a server on a free port of this machine."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield Store(f"http://{host}:{port}")
    finally:
        server.stop()


class Proxy(ThreadingHTTPServer):
    """Passes requests on, or does what a fault says."""

    daemon_threads = True

    def __init__(self, target: str, fault: Fault) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.target = target.removeprefix("http://")
        self.fault = fault
        self.faults = 0
        self.requests = 0
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        """Address of the proxy."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay quiet about clients that have gone: faults make them go."""


class _Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _pass(self) -> None:
        with self.server.lock:
            number = self.server.requests
            self.server.requests += 1
            fault = self.server.fault(number)
            self.server.faults += bool(fault)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault == "reset":
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()
            return
        if fault == "stall":
            time.sleep(3)  # longer than the client waits
            self.close_connection = True
            return
        if fault == "503":
            said = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            self._answer(503, {"Content-Type": "application/xml", "Content-Length": str(len(said))}, said)
            return
        upstream = http.client.HTTPConnection(self.server.target, timeout=10)
        upstream.request(self.command, self.path, body, dict(self.headers))
        found = upstream.getresponse()
        self._answer(found.status, dict(found.getheaders()), found.read())
        upstream.close()

    def _answer(self, status: int, headers: dict, body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        if "content-length" not in map(str.lower, headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def faulty(store: Store, fault: Fault) -> Iterator[Proxy]:
    """Start a proxy before a store."""
    proxy = Proxy(store.endpoint, fault)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
