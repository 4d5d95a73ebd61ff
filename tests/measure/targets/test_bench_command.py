"""`hasten bench` measures a server and an ONNX file as it measures a model here."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from test_onnx_target import WEIGHTS, matmul

from hasten.cli.main import main


def bench(*arguments, path):
    status = main(["bench", *map(str, arguments), "--warmup", "1", "--json", str(path)])
    return status, json.loads(path.read_text())


@pytest.mark.parametrize("kind", ["", "openai+", "ollama+"])
def test_a_server(served, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("HASTEN_API_KEY", served.key)
    status, report = bench(
        *(f"{kind}{served.url}", "--served-model", "chat", "--requests", "8", "--concurrency", "2"),
        *("--input-len", "16", "--output-len", "4", "--goal", "chat"),
        path=tmp_path / "report.json",
    )
    assert status == 0
    assert report["requests"] == {"completed": 8, "failed": 0, "truncated": 0}
    assert report["target"]["model"] == "chat"
    assert report["memory"]["peak_rss_bytes"] is None
    assert report["audit"]["client_rate"] > 100
    assert report["metrics"]["ttft"]["n"] == 8
    assert min(report["records"]["prompt_tokens"]) > 0


@pytest.mark.parametrize("turned", [False, True])
def test_a_server_beside_a_model_here(served, tiny_model, tmp_path, monkeypatch, turned):
    monkeypatch.setenv("HASTEN_API_KEY", served.key)
    path = tmp_path / "ab.json"
    targets = [str(tiny_model), served.url]
    status = main(
        [
            *("ab", *(targets[::-1] if turned else targets), "--served-model", "chat"),
            *("--rounds", "8", "--requests", "1", "--warmup", "0", "--input-len", "8"),
            *("--output-len", "4", "--threads", "1", "--json", str(path)),
        ]
    )
    assert status == 0
    found = json.loads(path.read_text())
    assert found["requests"] == [8, 8]
    kinds = {"in-process", "openai"}
    assert {found["a"]["kind"], found["b"]["kind"]} == kinds


def test_a_server_without_the_key(served, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HASTEN_API_KEY", raising=False)
    assert main(["bench", served.url]) == 1
    assert "HASTEN_API_KEY" in capsys.readouterr().err


def test_nobody_there(capsys):
    assert main(["bench", "http://127.0.0.1:9"]) == 1
    assert "127.0.0.1:9" in capsys.readouterr().err


def test_an_onnx_file(tmp_path):
    model = tmp_path / "model.onnx"
    onnx.save(matmul([numpy_helper.from_array(np.array(WEIGHTS), "w")]), model)
    status, report = bench(
        model, "--shape", "x=2,3", "--requests", "10", path=tmp_path / "report.json"
    )
    assert status == 0
    assert report["requests"]["completed"] == 10
    assert report["metrics"]["e2e"]["n"] == 10
    assert report["metrics"]["ttft"]["n"] == 0
    assert report["memory"]["peak_rss_bytes"] > 0


@pytest.mark.parametrize("shape", ["x", "x=", "=1", "x=a", "x=-1,3"])
def test_shapes_that_are_none(tmp_path, capsys, shape):
    model = tmp_path / "model.onnx"
    onnx.save(matmul([numpy_helper.from_array(np.array(WEIGHTS), "w")]), model)
    assert main(["bench", str(model), "--shape", shape]) == 2
    assert "1,3,224,224" in capsys.readouterr().err


class Mute(BaseHTTPRequestHandler):
    """A server of KServe's protocol that does not tell the inputs of its model, as MLServer may."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer({"name": "wine", "versions": [], "platform": "", "inputs": [], "outputs": []})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        length = self.headers.get("Inference-Header-Content-Length")
        header = body if length is None else body[: int(length)]
        self.server.asked.append(json.loads(header)["inputs"])
        output = {"name": "y", "datatype": "INT64", "shape": [1], "data": [0]}
        self.answer({"model_name": "wine", "outputs": [output]})

    def answer(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def mute():
    with ThreadingHTTPServer(("127.0.0.1", 0), Mute) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_inputs_that_a_server_does_not_tell(mute, tmp_path, capsys):
    url = f"kserve+http://127.0.0.1:{mute.server_port}"
    assert main(["bench", url, "--served-model", "wine"]) == 2
    assert "--shape" in capsys.readouterr().err
    given = ("--shape", "x=1,13", "--shape", "input:0:INT64=2")
    status, report = bench(
        *(url, "--served-model", "wine", "--requests", "3", *given), path=tmp_path / "report.json"
    )
    assert status == 0
    assert report["requests"]["completed"] == 3
    described = [(one["name"], one["datatype"], one["shape"]) for one in mute.asked[-1]]
    assert described == [("x", "FP32", [1, 13]), ("input:0", "INT64", [2])]
