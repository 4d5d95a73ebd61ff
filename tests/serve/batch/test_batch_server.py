"""Batches in a real server: the official client, a tiny model, and kills."""

import json
import os
import re
import subprocess
import sys
import time

import openai
import pytest

URL = "/v1/completions"


class Server:
    """`hasten serve` in a process of its own."""

    def __init__(self, model, data):
        command = [sys.executable, "-m", "hasten", "serve", f"tiny={model}", "--port", "0"]
        options = ["--threads", "1", "--max-context", "64", "--max-sequences", "2"]
        self.process = subprocess.Popen(
            [*command, *options, "--data", str(data)],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"HASTEN_CACHE": "off"},
        )
        for text in self.process.stderr:
            if found := re.search(r"serving at (\S+)", text):
                self.client = openai.OpenAI(api_key="none", base_url=f"{found[1]}/v1")
                break
        else:
            raise AssertionError("the server did not start")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.client.close()
        self.process.kill()
        self.process.stderr.close()
        self.process.wait()


def lines(count):
    body = {"model": "tiny", "max_tokens": 20, "temperature": 0}
    return "".join(
        json.dumps(
            {
                "custom_id": f"line-{i}",
                "method": "POST",
                "url": URL,
                "body": body | {"prompt": "".join(" abcdefghij"[int(d)] for d in str(i + 100))},
            }
        )
        + "\n"
        for i in range(count)
    )


def submit(client, text):
    file = client.files.create(file=("in.jsonl", text.encode()), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=URL, completion_window="24h", metadata={"job": "test"}
    )


def wait_for(client, batch, done):
    end = time.monotonic() + 90
    while not done(batch):
        assert time.monotonic() < end
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    return batch


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_a_batch_outlives_its_server(tiny_model, tmp_path, how):
    text = lines(400)
    with Server(tiny_model, tmp_path) as server:
        batch = submit(server.client, text)
        wait_for(server.client, batch, lambda one: one.request_counts.completed >= 50)
        getattr(server.process, how)()
        server.process.wait(30)
    with Server(tiny_model, tmp_path) as server:
        client = server.client
        # Somebody who waits is served meanwhile.
        answer = client.completions.create(model="tiny", prompt="abc", max_tokens=3)
        assert answer.usage.completion_tokens >= 1
        batch = wait_for(client, batch, lambda one: one.status == "completed")
        assert (batch.request_counts.completed, batch.request_counts.total) == (400, 400)
        assert batch.metadata == {"job": "test"}
        content = client.files.content(batch.output_file_id).text
        found = [json.loads(row) for row in content.splitlines()]
        assert sorted(row["custom_id"] for row in found) == sorted(f"line-{i}" for i in range(400))
        usage = sum(row["response"]["body"]["usage"]["completion_tokens"] for row in found)
        assert batch.usage.output_tokens == usage
        assert batch.error_file_id is None


def test_lines_for_models_that_are_not_there_fail_alone(tiny_model, tmp_path):
    text = lines(3) + lines(1).replace('"tiny"', '"other"').replace("line-0", "other")
    with Server(tiny_model, tmp_path) as server:
        client = server.client
        batch = wait_for(client, submit(client, text), lambda one: one.status == "completed")
        assert (batch.request_counts.completed, batch.request_counts.failed) == (3, 1)
        error = json.loads(client.files.content(batch.error_file_id).text)
        assert (error["custom_id"], error["response"]["status_code"]) == ("other", 404)
        assert "other" in error["response"]["body"]["error"]["message"]
