"""`hasten serve` in a process of its own, and what its models answer in this one."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, replace

from hasten.generation import Engine
from hasten.generation.options import engine_options
from hasten.models import load_model
from hasten.serve.formats import find_format
from hasten.types import SamplingParams

SECONDS = 60
"""After which a server hangs."""
OWNER, GUEST = "owner-key", "guest-key"
RARE = {"openai": "rare-openai-key", "anthropic": "rare-anthropic-key"}
"""Keys of which each may ask once a minute."""
KEYS = [
    {"name": "owner", "key": OWNER, "admin": True},
    {"name": "guest", "key": GUEST, "models": ["chat:latest"]},
    *({"name": name, "key": key, "requests_per_minute": 1} for name, key in RARE.items()),
]
"""What the server's file of keys holds."""


@dataclass
class Running:
    """A server.

    Attributes:
        url: Where it serves.
        key: An API key that may do everything; None where none is asked for.
    """

    url: str
    key: str | None = None

    def metric(self, name, **labels):
        """The value of a metric, summed over what the labels leave open; 0 where it is missing."""
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        request = urllib.request.Request(f"{self.url}/metrics", headers=headers)
        with urllib.request.urlopen(request, timeout=SECONDS) as reply:
            lines = reply.read().decode().splitlines()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        pattern = re.compile(rf"{re.escape(name)}(\{{.*\}})? (\S+)")
        found = [match for match in map(pattern.fullmatch, lines) if match]
        return sum(float(one[2]) for one in found if all(w in (one[1] or "") for w in wanted))


@contextmanager
def serving_process(*arguments, key=None, **environment):
    """Starts the command, waits until it serves, ends it politely and looks how it went."""
    command = [sys.executable, "-m", "hasten", "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HASTEN_CACHE": "off"} | environment,
    )
    said = []
    try:
        url = None
        while url is None and (line := process.stderr.readline()):
            said.append(line)
            url = line.split()[2] if line.startswith("serving at ") else None
        assert url is not None, "".join(said)
        # Logs are read to their end, or a full pipe would hold up the server.
        reader = threading.Thread(target=lambda: said.extend(process.stderr))
        reader.start()
        yield Running(url, key)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0, "".join(said)
        reader.join()
        assert not [line for line in said if "Traceback" in line], "".join(said)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def until(holds):
    """Waits until something holds."""
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.02)


class Expected:
    """A model in this process: what it answers is what servers have to answer.

    Args:
        directory: Of the model.
    """

    def __init__(self, directory):
        self.model = load_model(directory)
        self.engine = Engine(self.model, replace(engine_options(self.model), threads=1))
        self.format = find_format(self.model.chat_template, self.model.tokenizer)

    def tokens(self, text, **options):
        """The tokens of a text."""
        return self.model.tokenizer.encode(text, **options)

    def prompt(self, messages, tools=None, **values):
        """The tokens of a conversation."""
        text = self.model.chat_template.render(messages, tools=tools, **values)
        return self.tokens(text, add_special=False)

    def run(self, prompt, **sampling):
        """All outputs of the engine for a prompt."""
        return list(self.engine.generate(prompt, SamplingParams(**sampling)))

    def text(self, prompt, **sampling):
        """The text of an answer."""
        return "".join(output.text for output in self.run(prompt, **sampling))

    def chat(self, messages, tools=None, *, values=None, **sampling):
        """Text, number of tokens, and number of the prompt's tokens of a conversation's answer."""
        prompt = self.prompt(messages, tools, **(values or {}))
        outputs = self.run(prompt, keep_special=self.format.keep_special, **sampling)
        text = "".join(output.text for output in outputs)
        return text, sum(len(output.tokens) for output in outputs), len(prompt)
