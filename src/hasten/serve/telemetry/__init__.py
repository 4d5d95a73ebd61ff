"""What the server tells about itself: metrics, traces and logs."""

__all__: list[str] = []
