"""A client that sends bytes as they are, and may do as it likes."""

import socket


def request_bytes(method, path, body=b"", **headers):
    """A request; headers with the value None are left out."""
    fields = {"host": "127.0.0.1"} | {k.replace("_", "-"): v for k, v in headers.items()}
    if body or method == "POST":
        fields.setdefault("content-length", str(len(body)))
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value is not None)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


class Connection:
    """A socket of a client that may do as it likes."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.file = self.socket.makefile("rb")

    def send(self, data):
        self.socket.sendall(data)

    def response(self, method="GET"):
        """Status, headers and body of the next response; None if the server closed instead."""
        line = self.file.readline()
        if not line:
            return None
        status = int(line.split()[1])
        headers = {}
        while (line := self.file.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name] = value.strip()
        return status, headers, b"" if method == "HEAD" else self._body(headers)

    def _body(self, headers):
        if headers.get("transfer-encoding") != "chunked":
            return self.file.read(int(headers.get("content-length", 0)))
        body = b""
        while size := int(self.file.readline(), 16):
            body += self.file.read(size)
            self.file.readline()
        self.file.readline()
        return body

    def closed(self):
        """Whether the server closes; what else comes is read."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True

    def close(self):
        self.file.close()
        self.socket.close()
