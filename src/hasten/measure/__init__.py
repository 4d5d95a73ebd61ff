"""How fast, how exact, how much memory: loads, metrics, statistics and reports."""

__all__: list[str] = []
