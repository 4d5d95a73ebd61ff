"""Lists of files and batches, page by page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from hasten.serve.endpoint import Reply
from hasten.serve.protocols.reading import FieldError
from hasten.serve.protocols.streaming import encode

__all__ = ["list_page"]

_T = TypeVar("_T")


def list_page(
    entries: Sequence[_T],
    query: Mapping[str, str],
    render: Callable[[_T], dict[str, Any]],
    *,
    default: int,
    most: int,
) -> Reply:
    """One page of a list.

    Args:
        entries: All of them, the oldest first.
        query: With `after`, the id of the last entry of the page before; `limit` and `order`.
        render: Makes the JSON object of an entry.
        default: Entries of a page where the client does not say.
        most: That it may say.

    Raises:
        FieldError: If the query is not as it must be.
    """
    limit = _limit(query.get("limit", ""), default, most)
    order = query.get("order") or "desc"
    if order not in ("asc", "desc"):
        raise FieldError("order", f"it is {order[:80]!r}", allowed="asc, desc")
    rendered = [render(entry) for entry in (entries if order == "asc" else reversed(entries))]
    start = 0
    if after := query.get("after"):
        places = [place for place, one in enumerate(rendered, 1) if one["id"] == after]
        if not places:
            raise FieldError("after", f"there is no {after[:80]!r}", do="begin from the start")
        start = places[0]
    page = rendered[start : start + limit]
    return Reply(
        encode(
            {
                "object": "list",
                "data": page,
                "first_id": page[0]["id"] if page else None,
                "last_id": page[-1]["id"] if page else None,
                "has_more": len(rendered) > start + limit,
            }
        )
    )


def _limit(text: str, default: int, most: int) -> int:
    if not text:
        return default
    limit = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not 1 <= limit <= most:
        raise FieldError("limit", f"it is {text[:80]!r}", allowed=f"1 to {most}")
    return limit
