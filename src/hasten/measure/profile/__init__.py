"""Where the time of a language model goes: ops and their floors, parts, bottlenecks, sweeps."""

__all__: list[str] = []
