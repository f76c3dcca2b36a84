"""A server of S3 on this machine, and what may go wrong with one."""

import contextlib
import threading
from http.server import ThreadingHTTPServer

import localbucket
import pytest
import s3fs


class Bucket(ThreadingHTTPServer):
    """One bucket, at a `url` and in a `folder`. `asked`: the requests so far; `trouble`: what goes
    wrong with one, "lost" half-way or "denied", a function of command and path."""

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), type("Handler", (Handler,), {"data_root": folder}))
        self.url, self.folder = "s3://bucket", folder / "bucket"
        self.folder.mkdir()
        self.reset()

    def reset(self):
        self.asked, self.trouble = [], lambda command, path: None


class Handler(localbucket.S3Handler):
    def log_message(self, *_):
        pass

    def parse_request(self):
        """Called before each request is answered."""
        if not super().parse_request():
            return False
        self.server.asked.append((self.command, self.path))
        trouble = self.server.trouble(self.command, self.path)
        size = int(self.headers.get("Content-Length") or 0)
        if trouble == "lost":
            self.rfile.read(size // 2)
            if self.command == "GET":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf of")
            self.close_connection = True
        elif trouble == "denied":
            self.rfile.read(size)
            said = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            head = f"HTTP/1.1 403 Forbidden\r\nContent-Length: {len(said)}\r\n\r\n"
            self.wfile.write(head.encode() + said * (self.command != "HEAD"))
        return trouble is None


@contextlib.contextmanager
def serving(folder):
    with Bucket(folder) as bucket, pytest.MonkeyPatch.context() as patch:
        threading.Thread(target=bucket.serve_forever, daemon=True).start()
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{bucket.server_port}")
        for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "DEFAULT_REGION"):
            patch.setenv(f"AWS_{name}", "test")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        patch.setattr(s3fs.S3FileSystem, "retries", 2)
        yield bucket
        bucket.shutdown()
