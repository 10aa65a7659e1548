"""`realrl watch` against clients that mean harm; tests/report/test_report.py has its addresses, hosts and paths."""

import os
import socket
import threading

import pytest
from made_runs import make_run
from patience import PATIENCE_S

from realrl.report.watch import WatchServer


@pytest.fixture
def server(tmp_path):
    (tmp_path / "secret.txt").write_text("canary-secret")
    folder = make_run(tmp_path / "run", steps=2, rollouts=0)
    server = WatchServer(folder)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def send(server, request: bytes) -> bytes:
    """The whole answer to raw bytes; the other side closes."""
    with socket.create_connection(server.server_address, timeout=PATIENCE_S) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            parts = []
            while part := connection.recv(1 << 16):
                parts.append(part)
        except OSError:  # it hung up on the rest of the request
            return b""
        return b"".join(parts)


def with_host(server, line: str, rest: str = "") -> bytes:
    return f"{line}\r\nHost: 127.0.0.1:{server.server_port}\r\n{rest}\r\n".encode("latin-1")


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e/secret.txt",
        "//etc/passwd",
        "/run/../../secret.txt",
        "/./data.json",
        "/data.json/../../secret.txt",
        "/config.toml",
        "http://127.0.0.1/secret.txt",
        "/\\..\\secret.txt",
        "/data.json%00",
        "*",
    ],
)
def test_no_path_but_its_two_leads_anywhere(server, path):
    answer = send(server, with_host(server, f"GET {path} HTTP/1.1", "Connection: close\r\n"))
    assert answer.startswith(b"HTTP/1.0 404") and b"canary" not in answer and b"root:" not in answer


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE"])
def test_nothing_but_reading(server, method):
    assert b" 501 " in send(server, with_host(server, f"{method} /data.json HTTP/1.1", "Content-Length: 0\r\n"))


def test_odd_requests_cost_their_connection_only(server):
    thousand = "".join(f"X-{n}: {'y' * 60}\r\n" for n in range(1000))
    for request in (
        b"",
        b"\x00" * 100_000,
        b"GET /data.json\r\n\r\n",
        b"GET /data.json HTTP/1.1\r\n\r\n",
        b"GET / HTTP/99.9\r\n\r\n",
        b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
        with_host(server, "GET /data.json HTTP/1.1", thousand),
        with_host(server, "GET /data.json HTTP/1.1", "X: " + "y" * 100_000 + "\r\n"),
        with_host(server, "GET /data.json HTTP/1.1").replace(b"\r\nHost", b"\r\nHost: evil.example\r\nHost"),
        os.urandom(10_000),
    ):
        assert b"reward/mean" not in send(server, request)
    assert b"reward/mean" in send(server, with_host(server, "GET /data.json HTTP/1.1"))


def test_silent_clients_hold_no_one_up(server):
    """Sixty connections that say nothing, or half a line: another one is answered meanwhile, and theirs time out."""
    assert server.RequestHandlerClass.timeout == 30
    silent = [socket.create_connection(server.server_address) for _ in range(60)]
    for connection in silent[::2]:
        connection.sendall(b"GET /da")
    assert b"reward/mean" in send(server, with_host(server, "GET /data.json HTTP/1.1"))
    for connection in silent:
        connection.close()
