# ruff: noqa: E701
"""A server on loopback that speaks the chat protocol in many dialects and misbehaves as its questions say.

What it does hangs on the first word of the question's last user message (for a judge, of the explanation in it), on how
often it was asked, and on `dialect`. It counts every request, and every answer that somebody would pay for.
"""

import email.utils
import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

VERDICT = json.dumps({"reason": "so", "score": 4})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_): pass

    def reply(self, status, body, headers=(), length=None, kind="application/json"):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = [f"HTTP/1.1 {status} so", f"Content-Type: {kind}", f"Content-Length: {length or len(body)}",
                *(f"{name}: {value}" for name, value in headers)]
        self.wfile.write("\r\n".join(head).encode() + b"\r\n\r\n" + body) # in one packet
        self.wfile.flush()
        self.close_connection = self.close_connection or length is not None

    def answer(self, content, finish="stop", usage=(50, 5, 0), **message):
        with self.server.lock:
            self.server.paid[self.said] += 1
            self.server.tokens += Counter(dict(zip(("prompt", "completion", "reasoning"), usage, strict=True)))
        said = {"role": "assistant", "content": content, **message}
        self.reply(200, {"model": "toy-1", "choices": [{"index": 0, "message": said, "finish_reason": finish}],
                         "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1],
                                   "completion_tokens_details": {"reasoning_tokens": usage[2]}}})

    def refuse(self, message, param=None, status=400):
        self.reply(status, {"error": {"message": message, "param": param, "type": "invalid_request_error"}})

    def do_GET(self): self.reply(200, {})

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.said = server.question(body)
        with server.lock:
            server.asked[self.said] += 1
            server.bodies.append(body)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.paths.append(self.path)
            times = server.asked[self.said]
        server.times.setdefault(self.said, []).append(time.monotonic())
        if self.said == server.hold:
            server.holding.set()
            server.closing.wait(30)
            return
        if server.latency:
            time.sleep(server.latency)
        if not DIALECTS[server.dialect](self, body) and not misbehave(self, self.said.split(" ")[0], times):
            server.script(self, body, self.said)
        with server.lock:
            server.answered[self.said] += 1


def misbehave(to: Handler, word: str, times: int) -> bool:
    "Behave as the first word of the question says; whether it said anything."
    first = times == 1
    match word:
        case "throttled" if first: to.reply(429, {"error": "slow down"}, [("Retry-After", "1")])
        case "throttled-ms" if first: to.reply(429, {"error": "slow down"}, [("retry-after-ms", "700")])
        case "throttled-date" if first:
            to.reply(429, b"", [("Retry-After", email.utils.formatdate(time.time() + 2, usegmt=True))])
        case "broke": to.refuse("You exceeded your quota.", status=429)
        case "broken" if times < 3: to.reply(500, b"<html>oops</html>", kind="text/html")
        case "down": to.reply(503, b"")
        case "cut" if first: to.reply(200, b'{"choices": [{"message": {"content": "{', length=500)
        case "half" if first: to.reply(200, b'{"choices": [{"message": {"conte')
        case "html" if first: to.reply(200, b"<html>Welcome to our hotel</html>", kind="text/html")
        case "deep" if first: to.reply(200, b"[" * 200_000)
        case "plain": to.reply(200, json.dumps({"choices": [{"message": {"content": VERDICT}}]}).encode(),
                               kind="text/plain") # whole, with a wrong type and without a count of tokens
        case "eleven": to.answer('{"score": 11}')
        case "exaggerated" if first: to.answer('{"score": 11}')
        case "empty" if first: to.reply(200, {"choices": []})
        case "refused": to.refuse("too long")
        case "hang": to.server.closing.wait(30)
        case "drip": drip(to)
        case "flood": flood(to)
        case "zipped": to.reply(200, b"\x1f\x8b", [("Content-Encoding", "gzip")])
        case "locked": to.refuse(f"no such key: {to.headers.get('Authorization')}", status=401)
        case "moved": to.reply(307, b"", [("Location", "http://elsewhere.invalid/v1/chat/completions")])
        case _: return False
    return True


def drip(to: Handler):
    to.wfile.write(b"HTTP/1.1 200 so\r\nContent-Length: 100000\r\n\r\n")
    while not to.server.closing.wait(0.05):
        to.wfile.write(b" ")
        to.wfile.flush()


def flood(to: Handler):
    to.wfile.write(b"HTTP/1.1 200 so\r\nContent-Length: 100000000\r\n\r\n")
    for _ in range(100):
        to.wfile.write(b" " * 1_000_000)
        to.server.sent += 1_000_000


# -- dialects: each says whether it has replied ------------------------------------------------------------------------
def plain(to: Handler, body: dict) -> bool:
    return False

def newer(to: Handler, body: dict) -> bool:
    "As the reasoning models of a large provider."
    if "max_tokens" in body:
        to.refuse("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "max_tokens")
    elif body.get("temperature", 1) != 1:
        to.refuse("Unsupported value: only the default (1) is there.", "temperature")
    return "max_tokens" in body or body.get("temperature", 1) != 1

def schema_only(to: Handler, body: dict) -> bool:
    "As a desktop server that takes schemas and no json_object; its error is a plain string."
    refused = body.get("response_format", {"type": "text"})["type"] not in ("json_schema", "text")
    if refused:
        to.reply(400, {"error": "'response_format.type' must be 'json_schema' or 'text'"})
    return refused

def no_format(to: Handler, body: dict) -> bool:
    "As a small server that checks fields with pydantic."
    known = {"model", "messages", "max_tokens", "temperature", "stop"}
    if strange := sorted(set(body) - known):
        to.reply(422, {"detail": [{"loc": ["body", strange[0]], "msg": "Extra inputs are not permitted"}]})
    return bool(strange)

def azure(to: Handler, body: dict) -> bool:
    good = "api-version=2024-10-21" in to.path and to.path.split("?")[0].endswith("/chat/completions")
    if not (good and to.headers.get("api-key") and not to.headers.get("Authorization")):
        to.refuse("Resource not found", status=404)
        return True
    return False

def saying(*contents, **message):
    def speak(to: Handler, body: dict) -> bool:
        to.answer(*contents, **message)
        return True
    return speak


DIALECTS = {
    "plain": plain, "newer": newer, "schema_only": schema_only, "no_format": no_format, "azure": azure,
    "think": saying(f"<think>\nIt adds rightly. {{\"score\": 1}}\n</think>\n\n{VERDICT}", usage=(50, 25, 20)),
    "think_open": saying(f"It adds rightly.</think>{VERDICT}"),
    "think_field": saying(VERDICT, reasoning_content="It adds rightly."),
    "prose": saying(f"Here is my rating:\n{VERDICT}\nI hope it helps."), "fence": saying(f"```json\n{VERDICT}\n```"),
    "string": saying('{"reason": "so", "score": "4"}'), "float": saying('{"reason": "so", "score": 4.0}'),
    "separators": saying(json.dumps({"reason": "A\u2028B\x85C", "score": 4}, ensure_ascii=False)),
}


def explanation(body: dict) -> str:
    "What a judge is to rate."
    return re.search(r"<explanation>\n(.*)\n</explanation>", body["messages"][1]["content"], re.S)[1]


def last_words(body: dict) -> str:
    return body["messages"][-1]["content"] if "messages" in body else body["prompt"]


def verdict(to: Handler, body: dict, said: str):
    to.answer(VERDICT)


class Server(ThreadingHTTPServer):
    "Behaves as its questions say; counts what it was asked and what it answered."
    daemon_threads, request_queue_size, allow_reuse_address = True, 128, True

    def __init__(self, dialect="plain", question=explanation, script=verdict, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.dialect, self.question, self.script, self.latency = dialect, question, script, 0.0
        self.asked, self.answered, self.paid, self.tokens, self.times = Counter(), Counter(), Counter(), Counter(), {}
        self.bodies, self.headers, self.paths, self.sent = [], [], [], 0
        self.hold, self.lock = None, threading.Lock()
        self.holding, self.closing = threading.Event(), threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self): return f"http://127.0.0.1:{self.server_address[1]}/v1"
    def handle_error(self, *_): pass # clients hang up: that is what is tested

    def end(self):
        self.closing.set()
        self.shutdown()
        self.server_close()

    def __enter__(self): return self
    def __exit__(self, *_): self.end()
