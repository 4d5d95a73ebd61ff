"""A worker process that misbehaves: `false_worker.py HOW FD`."""

import os
import socket
import sys
import time

from hasten.serve.wire import (
    Accepted,
    EngineInfo,
    Frames,
    Open,
    Ping,
    Pong,
    Ready,
    Submit,
    decode_to_worker,
    encode,
)
from hasten.types import EngineStatistics

INFO = EngineInfo(os.getpid(), 100, 30, None, 4, {"weights": 1}, "avx2", 1, "files", 0.1)
STATISTICS = EngineStatistics(0, 0, 1, 0, 0, 0, 0, 0, 0, 0, {})


def main(how, descriptor):
    """Reads messages; what it does about them is in the name."""
    connection = socket.socket(fileno=descriptor)
    frames = Frames()
    working = False
    while data := connection.recv(1 << 16):
        for message in map(decode_to_worker, frames.feed(data)):
            match message:
                case Open() if how == "dies-at-once":
                    os._exit(3)
                case Open() if how == "never-opens":
                    time.sleep(1000)
                case Open():
                    connection.sendall(encode(Ready(INFO, STATISTICS)))
                    if how == "dies-when-ready":
                        os._exit(4)
                case Submit(number) if how == "writes-nonsense":
                    connection.sendall(encode(Accepted(number)) + b"\1\0\0\0\xc1")
                case Submit(number) if how == "lies-about-lengths":
                    connection.sendall(encode(Accepted(number)) + b"\xff\xff\xff\xff")
                case Submit(number):
                    connection.sendall(encode(Accepted(number)))
                    working = True
                case Ping():
                    connection.sendall(encode(Pong(7, working)))
    if how == "ignores-the-end":
        time.sleep(1000)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
