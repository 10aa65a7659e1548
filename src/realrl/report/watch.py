"""`realrl watch`: serve the report of one run, on this machine only, and update it while the run goes on."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from realrl.errors import ConfigError, DataError, RealrlError
from realrl.report.page import policy, render_page, script_json
from realrl.report.report import report_data
from realrl.rundir.paths import RunPaths

_ADDRESS = "127.0.0.1"


class WatchServer(ThreadingHTTPServer):
    """Serves the page and its data on the loopback address; the run in `folder` may start and end later.

    Port 0 means any free port; `url` contains it. Raises DataError if `folder` exists but is not a run folder, and ConfigError
    if the port cannot be used.
    """

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        if folder.exists() and not RunPaths(folder).config.is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(
                f"{folder} is not a run folder: it has no config.toml; give the folder that the recipe names in run.dir"
            )
        self._folder = folder
        self._lock = threading.Lock()
        self._state: object = None
        self._data = b"", ""
        try:
            super().__init__((_ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"--port {port} on {_ADDRESS} cannot be used ({error}); choose another, or 0 for a free port"
            ) from error
        self.hosts = {f"{name}:{self.server_port}" for name in (_ADDRESS, "localhost")}
        if self.server_port == 80:
            self.hosts |= {_ADDRESS, "localhost"}
        self.page = render_page(None, live=True).encode("utf-8")

    @property
    def url(self) -> str:
        return f"http://{_ADDRESS}:{self.server_port}/"

    def data(self) -> tuple[bytes, str]:
        """The data as JSON and their tag; computed again only if a file of the run has changed."""
        with self._lock:
            state = self._look()
            if state != self._state:
                folders = [self._folder] if RunPaths(self._folder).config.is_file() else []
                body = script_json(report_data(folders)).encode("utf-8")
                self._data, self._state = (body, f'"{hashlib.sha256(body).hexdigest()[:16]}"'), state
            return self._data

    def _look(self) -> object:
        """A value that changes when the run writes something."""
        paths = RunPaths(self._folder)
        files = (paths.config, paths.metrics, paths.alarms, paths.environment)
        state = []
        for path in (*files, paths.rollouts, paths.evaluations, paths.checkpoints):
            try:
                found = path.stat()
            except OSError:
                state.append(None)
            else:
                state.append((found.st_mtime_ns, found.st_size))
        return state


def watch(folder: Path, port: int, announce: Callable[[str], None]) -> None:
    """Serve until Ctrl-C; `announce` is called with the address when the server is ready."""
    with WatchServer(folder, port) as server:
        announce(server.url)
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            return


class _Handler(BaseHTTPRequestHandler):
    server: WatchServer
    server_version = "realrl"
    sys_version = ""
    # A client that sends nothing must not block a thread for ever.
    timeout = 30

    def do_GET(self) -> None:
        # Against DNS rebinding: a foreign page whose name resolves to this machine sends that name as host.
        if self.headers.get("Host") not in self.server.hosts:
            self._answer(421, b"realrl watch answers only at its own address\n", "text/plain; charset=utf-8")
        elif self.path == "/":
            self._answer(200, self.server.page, "text/html; charset=utf-8")
        elif self.path == "/data.json":
            self._answer_data()
        else:
            self._answer(404, b"not found\n", "text/plain; charset=utf-8")

    do_HEAD = do_GET

    def _answer_data(self) -> None:
        try:
            body, tag = self.server.data()
        except RealrlError as error:
            self._answer(503, f"{error}\n".encode("utf-8", "replace"), "text/plain; charset=utf-8")
            return
        if self.headers.get("If-None-Match") == tag:
            self._answer(304, b"", "application/json", tag)
        else:
            self._answer(200, body, "application/json", tag)

    def _answer(self, status: int, body: bytes, kind: str, tag: str = "") -> None:
        self.send_response(status)
        if status != 304:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        if tag:
            self.send_header("ETag", tag)
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", f"{policy(live=True)}; frame-ancestors 'none'")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD" and status != 304:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the page sends a request every few seconds."""
