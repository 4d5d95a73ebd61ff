"""The whole server in a process of its own: python attacked_server.py MODEL DATA SETTINGS.

SETTINGS is JSON: "limits" as in `Limits`, "keys": fields of `Client` by API key, and others as in
`ServerSettings`. It prints its port, and on SIGUSR1 how many tasks it has.
"""

import asyncio
import gc
import json
import signal
import sys
from pathlib import Path

from hasten.serve.app import App
from hasten.serve.assemble import all_routes
from hasten.serve.auth import key_digest
from hasten.serve.build import build_service
from hasten.serve.jobs import Client
from hasten.serve.server import Server
from hasten.serve.settings import Limits, ServerSettings
from hasten.serve.telemetry.logs import logging_to
from hasten.serve.wire import EngineSpec
from hasten.types import EngineOptions

OPTIONS = EngineOptions(threads=1, max_context=128, max_sequences=4)


async def serve(model, data, limits, keys, **others):
    settings = ServerSettings(
        port=0,
        data=data,
        limits=Limits(**limits),
        keys={key_digest(key): Client(**fields) for key, fields in keys.items()},
        drain_seconds=5.0,
        **others,
    )
    specs = {
        "tiny": EngineSpec(model, "generate", OPTIONS),
        "vectors": EngineSpec(model, "embed", OPTIONS),
    }
    service = build_service(settings, specs, connections=lambda: server.connections)
    server = Server(App(service, all_routes()))
    server.stop_on_signals()
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGUSR1, lambda: print(len(asyncio.all_tasks()), flush=True)
    )
    await service.start()
    await server.start()
    print(server.port, flush=True)
    await server.serve()


if __name__ == "__main__":
    gc.set_threshold(100_000, 20, 100)  # as in hasten.cli.main
    with logging_to("error"):
        asyncio.run(serve(sys.argv[1], Path(sys.argv[2]), **json.loads(sys.argv[3])))
