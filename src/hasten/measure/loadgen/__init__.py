"""MLPerf's scenarios through its own LoadGen, over any target."""

from hasten.measure.loadgen.result import LoadGenResult
from hasten.measure.loadgen.run import run_loadgen
from hasten.measure.loadgen.search import ServerRate, find_server_rate
from hasten.measure.loadgen.settings import LoadGenSettings, Scenario

__all__ = [
    "LoadGenResult",
    "LoadGenSettings",
    "Scenario",
    "ServerRate",
    "find_server_rate",
    "run_loadgen",
]
