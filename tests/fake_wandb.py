"""A pretended W&B server: answers what wandb asks for while a run is logged, and keeps the history it is sent."""

import contextlib
import gzip
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """`history` is what the page of the run would show; `silent` set: every request hangs from then on."""

    def __init__(self):
        self.history: list[dict] = []
        self.complete, self.silent, self.over = False, threading.Event(), threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self._http.handle_error = lambda *_: None  # a client that is gone
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return "http://127.0.0.1:%d" % self._http.server_address[1]

    def close(self):
        self.over.set()
        self._http.shutdown()
        self._http.server_close()

    def answer(self, query: str, variables: dict) -> dict:
        name = re.search(r"(?:query|mutation)\s+(\w+)", query)
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
        if name[1] == "UpsertBucket":
            bucket = {"id": "B", "name": variables.get("name"), "displayName": "", "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}}
        if name[1] == "RunResumeStatus":
            last = json.dumps([json.dumps(self.history[-1])] if self.history else [])
            bucket = {
                "id": "B", "name": variables["name"], "displayName": "", "historyLineCount": len(self.history), "config": "{}",
                "logLineCount": 0, "eventsLineCount": 0, "historyTail": last, "eventsTail": "[]", "tags": [],
                "summaryMetrics": "{}", "wandbConfig": '{"t": {}}',
            }  # fmt: skip
            return {"model": project | {"bucket": bucket if self.history else None}}
        if name[1] == "CreateRunFiles":
            files = [{"name": f, "uploadUrl": f"{self.url}/file"} for f in variables["files"]]
            return {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": files}}
        return {}

    def stream(self, content: dict) -> None:
        chunk = (content.get("files") or {}).get("wandb-history.jsonl")
        if chunk:  # an offset below what is there takes its place
            self.history[chunk["offset"] :] = map(json.loads, chunk["content"])
        self.complete |= bool(content.get("complete"))

    def _handler(server):  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if server.silent.is_set():
                    server.over.wait(120)
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                reply = {}
                if self.path == "/graphql":
                    asked = json.loads(body)
                    reply = {"data": server.answer(asked["query"], asked.get("variables") or {})}
                elif self.path.endswith("/file_stream"):
                    server.stream(json.loads(body))
                out = json.dumps(reply).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(out)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(out)

            do_PUT = do_GET = do_POST

            def log_message(self, *_):
                pass

        return Handler
