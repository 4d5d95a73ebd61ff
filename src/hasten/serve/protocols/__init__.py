"""One package or file a protocol: pure functions from bytes to jobs and from events to bytes."""

__all__: list[str] = []
