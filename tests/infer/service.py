"""A service of log-probabilities and chats that does as a test wishes."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Service(ThreadingHTTPServer):
    """Says "warm" of texts with red in them and "cold" of others, the better the more often a prompt says tell.

    In a chat it repeats in capitals what it was last told.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[dict] = []
        self.keys: set[str | None] = set()
        self.faults: list[tuple[int, dict, bytes]] = []  # to answer with first
        self.limit: int | None = None  # requests until it is down
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        service = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        service.keys.add(self.headers["Authorization"])
        if service.limit is not None and len(service.seen) >= service.limit:
            self.close_connection = True
            self.connection.close()
            return
        if service.faults:
            status, headers, content = service.faults.pop(0)
        else:
            service.seen.append(body)
            if self.path.endswith("/chat/completions"):
                said = {"role": "assistant", "content": body["messages"][-1]["content"].upper()}
                content = json.dumps({"choices": [{"message": said, "finish_reason": "stop"}]}).encode()
                self.answer(200, {}, content)
                return
            before, text = body["prompt"].split("\n") if "\n" in body["prompt"] else ("", body["prompt"])
            sure = 0.1 + 0.2 * before.split().count("tell")
            good, bad = (" warm", " cold") if "red" in text else (" cold", " warm")
            likely = {good: -1.0 + sure / 2, bad: -1.0 - sure / 2, " the": -0.5}
            answer = {"choices": [{"logprobs": {"top_logprobs": [likely]}}], "usage": {"total_tokens": 7}}
            status, headers, content = 200, {}, json.dumps(answer).encode()
        self.answer(status, headers, content)

    def answer(self, status: int, headers: dict, content: bytes):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def serving() -> Iterator[Service]:
    service = Service()
    yield service
    service.shutdown()
    service.server_close()
