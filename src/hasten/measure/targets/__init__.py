"""What can be measured: a model in this process, or a server by its URL."""

__all__: list[str] = []
