"""A Hub on the loopback interface, for the real `huggingface_hub` client.

    with LoopbackHub() as hub:
        HfApi(endpoint=hub.url, token=hub.add_user("alice")).create_repo("model")

It speaks the part of the Hub's protocol that pushing and loading models needs: accounts by token, public and private
model repositories with commits, branches and tags, the upload of small files in a commit and of large ones through
git-LFS, downloads by revision with the headers that the client's cache is built from. A commit is one step: before it,
nothing of it can be seen. `fail` cuts connections, or answers with an error, a given number of times.

Everything is in memory. The route of Xet is not served: clients need `HF_HUB_DISABLE_XET=1`.
"""

import os
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from hub_repositories import HubError, Repositories
from hub_routes import Answer, Request, answer, refusal


@dataclass
class _Fault:
    method: str
    path_part: str
    times: int
    status: int | None


class LoopbackHub(Repositories):
    """The server and all that it holds; it serves inside its `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[tuple[str, str]] = []
        """Method and path of every request so far, in order."""
        self._faults: list[_Fault] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Variables for a process of which this is the only Hub; its cache and its account are in the folder `home`."""
        ours = ("HF_", "HUGGING", "TRANSFORMERS_")  # among them HF_HUB_OFFLINE, under which the tests run
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        hub = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return {**inherited, **hub, **quiet, **({} if token is None else {"HF_TOKEN": token})}

    def fail(self, method: str, path_part: str, times: int = 1, status: int | None = None) -> None:
        """Makes the next `times` requests of this method with `path_part` in their path fail.

        With a `status` they are answered with it. Without one the connection is cut in the middle: of the upload where
        the client sends a body, of the answer where it does not.
        """
        self._faults.append(_Fault(method, path_part, times, status))

    def count(self, method: str, path_part: str) -> int:
        """How many requests of this method had `path_part` in their path so far."""
        return sum(found == method and path_part in path for found, path in self.requests)

    def receive(self, method: str, path: str) -> _Fault | None:
        """Notes a request; returns the fault that it meets."""
        with self._lock:
            self.requests.append((method, path))
            for fault in self._faults:
                if fault.times > 0 and fault.method == method and fault.path_part in path:
                    fault.times -= 1
                    return fault
        return None

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        """What the Hub says to a whole request; one at a time."""
        url = urlsplit(target)
        token = headers.get("authorization", "").removeprefix("Bearer ")
        user = self.users.get(token)
        if token and user is None:
            return refusal(HubError(401, "Invalid credentials in Authorization header"))
        with self._lock:
            return answer(method, url.path, Request(self, self.url, headers, parse_qs(url.query), body, user))


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        fault = self.hub.receive(self.command, self.path)
        cut = fault is not None and fault.status is None
        length = int(self.headers.get("Content-Length") or 0)  # the client never sends chunks of unknown number
        body = self.rfile.read(length // 2 if cut else length)
        if len(body) < length:  # cut here, or by a client that was killed: half a request asks for nothing
            self.close_connection = True
            return
        if fault is not None and fault.status is not None:
            answered = refusal(HubError(fault.status, "a fault that the test asked for"))
        else:
            headers = {name.lower(): value for name, value in self.headers.items()}
            answered = self.hub.answer(self.command, self.path, headers, body)
        self.send_response(answered.status)
        for name, value in {**answered.headers, "Content-Length": str(len(answered.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answered.body[: len(answered.body) // 2] if cut else answered.body)
        self.close_connection |= cut

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def log_message(self, *_: object) -> None:
        pass
