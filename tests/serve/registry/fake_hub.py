"""A Hub on this machine: repositories of files, over HTTP."""

import hashlib
import json
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".gguf", ".safetensors")


class FakeHub:
    """Serves `repositories`: by name, the content of each file by its name."""

    def __init__(self):
        self.repositories = {}
        self.revisions = {}
        self.asked = []
        self.damaged = set()
        self.slow = set()  # files whose bodies stop in their midst as long as they are in it

    def publish(self, name, files, revision="1"):
        self.repositories[name] = files
        self.revisions[name] = revision * 40

    def describe(self, name):
        files = self.repositories[name]
        siblings = []
        for file, content in files.items():
            entry = {"rfilename": file, "size": len(content), "blobId": etag(file, content)[:40]}
            if file.endswith(LARGE):
                entry["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 9}
            siblings.append(entry)
        return {"id": name, "modelId": name, "sha": self.revisions[name], "siblings": siblings}

    @contextmanager
    def running(self):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def answer(self, *, body):
                path = unquote(urlsplit(self.path).path).strip("/")
                hub.asked.append((self.command, path))
                parts = path.split("/")
                if parts[:2] == ["api", "models"]:
                    name = "/".join(parts[2:4])
                    if name in hub.repositories:
                        return self.send(json.dumps(hub.describe(name)).encode(), {}, body)
                elif parts[2:3] == ["resolve"]:
                    name, file = "/".join(parts[:2]), "/".join(parts[4:])
                    content = hub.repositories.get(name, {}).get(file)
                    if content is not None and parts[3] == hub.revisions[name]:
                        headers = {"ETag": f'"{etag(file, content)}"', "X-Repo-Commit": parts[3]}
                        if file in hub.damaged:
                            content = bytes(len(content))
                        with suppress(ConnectionError):
                            self.send(content, headers, body, file)
                        return None
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return None

            def send(self, content, headers, body, file=""):
                self.send_response(200)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if not body:
                    return
                half = len(content) // 2
                self.wfile.write(content[:half])
                self.wfile.flush()
                while file in hub.slow:
                    time.sleep(0.01)
                self.wfile.write(content[half:])

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            self.slow.clear()
            server.shutdown()
            server.server_close()
            thread.join()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def etag(file, content):
    return sha256(content) if file.endswith(LARGE) else hashlib.sha1(content).hexdigest()
