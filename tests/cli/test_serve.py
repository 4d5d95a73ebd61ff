"""`hasten serve` from its start to its end, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest


@pytest.fixture
def settings(monkeypatch):
    """What the command would have run."""
    import hasten.cli.serve as module

    seen = {}
    monkeypatch.setattr(module, "_run", lambda settings, specs: seen.update(s=settings, m=specs))
    monkeypatch.delenv("HASTEN_API_KEY", raising=False)
    return seen


def test_every_option_arrives(hasten, tiny_model, settings, tmp_path):
    keys = tmp_path / "keys.json"
    keys.write_text('[{"name": "alice", "key": "abc"}]')
    arguments = (
        f"--host 0.0.0.0 --port 9 --keys {keys} --api-key one --api-key two --allow-host a "
        "--allow-origin https://b --tls-certificate c.pem --tls-key k.pem --queue 3 --timeout 5 "
        "--max-connections 7 --max-body 1MiB --max-upload 2MiB --memory 3GiB --keep-alive 8 "
        f"--data {tmp_path} --drain 9 --log-level debug --traces http://c --lora poet=/x "
        "--threads 1 --max-sequences 3 --response-cache 4MiB --cache-seconds 6 --cache-sampled"
    )
    assert hasten("serve", f"chat={tiny_model}", *arguments.split()).status == 0
    made = settings["s"]
    assert (made.host, made.port, made.drain_seconds) == ("0.0.0.0", 9, 9.0)
    assert sorted(client.name for client in made.keys.values()) == ["alice", "key-1", "key-2"]
    assert (made.hosts, made.origins) == ({"a"}, {"https://b"})
    assert (str(made.certificate), str(made.private_key)) == ("c.pem", "k.pem")
    limits = made.limits
    assert (limits.queue, limits.request_seconds, limits.connections) == (3, 5.0, 7)
    assert (limits.body, limits.upload) == (1 << 20, 2 << 20)
    assert (made.memory, made.keep_alive, made.data) == (3 << 30, 8.0, tmp_path)
    assert (made.log_level, made.traces) == ("debug", "http://c")
    assert (made.response_cache, made.cache_seconds, made.cache_sampled) == (4 << 20, 6.0, True)
    spec = settings["m"]["chat"]
    assert (spec.model, spec.kind, spec.adapters) == (str(tiny_model), "generate", {"poet": "/x"})
    assert (spec.options.threads, spec.options.max_sequences) == (1, 3)


def test_keys_from_the_environment(hasten, tiny_model, settings, monkeypatch):
    monkeypatch.setenv("HASTEN_API_KEY", "abc")
    assert hasten("serve", str(tiny_model), "--host", "0.0.0.0").status == 0
    assert len(settings["s"].keys) == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "Missing argument"),
        (["--host", "0.0.0.0"], "--no-auth"),
        (["--keys", "none.json"], "cannot read the keys in 'none.json'"),
        (["--api-key", "a b"], "an API key of 3 characters cannot be used"),
        (["--api-key", ""], "an API key of 0 characters cannot be used"),
        (["--lora", "poet"], "allowed: NAME=PATH"),
        (["--timeout", "nan"], "not a finite number"),
        (["--max-body", "0"], "is not a size"),
        (["--port", "70000"], "70000 is not in the range"),
    ],
)
def test_wrong_use(hasten, tiny_model, settings, arguments, error):
    models = [str(tiny_model)] if arguments else []
    result = hasten("serve", *models, *arguments)
    assert result.status == 2
    assert error in result.err
    assert not settings


def test_two_models_of_one_name(hasten, tiny_model, settings):
    result = hasten("serve", str(tiny_model), str(tiny_model))
    assert (result.status, "give one as NAME=MODEL" in result.err) == (2, True)
    assert hasten("serve", str(tiny_model), f"other={tiny_model}").status == 0
    assert list(settings["m"]) == [tiny_model.name, "other"]


def test_help_is_in_sections(hasten):
    text = hasten("serve", "--help").out
    at = [text.index(f"{name}:\n") for name in ("Who may ask", "How much at once")]
    at += [text.index(f"{name}:\n") for name in ("How the server runs", "How models run")]
    assert at == sorted(at)
    assert at[-1] < text.index("--max-sequences")


@pytest.fixture
def start(tiny_model, tmp_path):
    """Starts the command in a process of its own and reads what it says until it serves."""
    running = []

    def serve(*arguments, port="0"):
        command = [sys.executable, "-m", "hasten", "serve", f"tiny={tiny_model}", "--threads", "1"]
        command += ["--max-context", "128", "--port", port, "--data", str(tmp_path), *arguments]
        environment = os.environ | {"HASTEN_CACHE": "off"}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        running.append(process)
        said = ""
        while line := process.stderr.readline():
            said += line
            if line.startswith("serving at "):
                return process, line.split()[2], said + process.stderr.readline()
        return process, None, said

    yield serve
    for process in running:
        process.kill()
        process.wait()
        process.stderr.close()


def ask(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=30) as reply:
        return json.loads(reply.read())


def test_from_start_to_end(start):
    process, url, said = start()
    assert f"curl {url}/v1/chat/completions" in said
    assert ask(f"{url}/health/ready")["status"] == "ready"
    assert [one["id"] for one in ask(f"{url}/v1/models")["data"]] == ["tiny"]
    assert ask(f"{url}/api/tags")["models"]
    body = {"model": "tiny", "prompt": "hello", "max_tokens": 3}
    assert ask(f"{url}/v1/completions", body)["usage"]["completion_tokens"] > 0
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def test_a_signal_while_it_loads(tiny_model, tmp_path):
    command = [sys.executable, "-m", "hasten", "serve", str(tiny_model), "--port", "0"]
    environment = os.environ | {"HASTEN_CACHE": "off"}
    command += ["--data", str(tmp_path), "--log-level", "debug"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        process.stderr.readline()  # it has begun
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    assert "Traceback" not in said


@pytest.fixture
def waiting_thread():
    """Another thread: the kernel may give it the signal."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    yield
    end.set()
    thread.join()


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.05)


@pytest.mark.usefixtures("waiting_thread")
@pytest.mark.parametrize("moment", ["the loop is made", "its handler is put"])
def test_ctrl_c_while_the_event_loop_begins(hasten, tiny_model, tmp_path, monkeypatch, moment):
    make, put, pressed = asyncio.new_event_loop, signal.signal, []

    def made():
        press_ctrl_c()
        pressed.append(moment)
        return make()

    def put_then_pressed(number, handler):
        before = put(number, handler)
        if number == signal.SIGINT and handler is not signal.default_int_handler:
            pressed.append(moment)
            press_ctrl_c()
        return before

    if moment == "the loop is made":
        monkeypatch.setattr(asyncio.events, "new_event_loop", made)
    else:
        monkeypatch.setattr(signal, "signal", put_then_pressed)
    quiet = f"--port 0 --data {tmp_path} --log-level warning"
    result = hasten("serve", str(tiny_model), *quiet.split())
    assert pressed
    assert (result.status, result.err) == (0, "")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_before_the_server_acts_on_signals(hasten, tiny_model, monkeypatch):
    import hasten.cli.serve as module

    def interrupted(settings, specs):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_run", interrupted)
    result = hasten("serve", str(tiny_model))
    assert (result.status, "ended before it served" in result.err) == (0, True)


def test_a_port_that_is_taken(start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process, url, said = start(port=str(taken.getsockname()[1]))
        assert url is None
        assert process.wait(30) == 2
    assert said.startswith("error: port ")
    assert "is taken; choose another --port" in said
    assert said.count("\n") == 1


def test_a_certificate_that_is_none(start, tmp_path):
    text = tmp_path / "text.pem"
    text.write_text("hello")
    process, _, said = start("--tls-certificate", str(text), "--tls-key", str(text))
    assert process.wait(30) == 2
    assert "are no certificate and its key" in said
