"""Batches in a real server: the official client, a tiny model, and kills."""

import json
import os
import re
import subprocess
import sys
import time

import openai

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


def test_a_batch_outlives_its_servers(tiny_model, tmp_path):
    names = [f"line-{i}" for i in range(300)]
    text = lines(300) + lines(1).replace('"tiny"', '"other"').replace("line-0", "other")
    with Server(tiny_model, tmp_path) as server:
        batch = submit(server.client, text)
        wait_for(server.client, batch, lambda one: one.request_counts.completed >= 30)
        server.process.kill()
    with Server(tiny_model, tmp_path) as server:
        # Somebody who waits is served meanwhile.
        answer = server.client.completions.create(model="tiny", prompt="abc", max_tokens=3)
        assert answer.usage.completion_tokens >= 1
        wait_for(server.client, batch, lambda one: one.request_counts.completed >= 60)
        server.process.terminate()
        assert server.process.wait(60) == 0
    with Server(tiny_model, tmp_path) as server:
        client = server.client
        unwanted = client.batches.cancel(submit(client, lines(300)).id)
        batch = wait_for(client, batch, lambda one: one.status == "completed")
        counts = batch.request_counts
        assert (counts.completed, counts.failed, counts.total) == (300, 1, 301)
        assert batch.metadata == {"job": "test"}
        content = client.files.content(batch.output_file_id).text
        found = [json.loads(row) for row in content.splitlines()]
        assert sorted(row["custom_id"] for row in found) == sorted(names)
        usage = sum(row["response"]["body"]["usage"]["completion_tokens"] for row in found)
        assert batch.usage.output_tokens == usage
        # The line for a model that is not there fails alone.
        error = json.loads(client.files.content(batch.error_file_id).text)
        assert (error["custom_id"], error["response"]["status_code"]) == ("other", 404)
        assert "other" in error["response"]["body"]["error"]["message"]
        assert wait_for(client, unwanted, lambda one: one.status == "cancelled")
