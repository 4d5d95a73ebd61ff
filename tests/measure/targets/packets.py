"""What networks and servers do to bytes: they are cut anywhere, and some come broken."""

from itertools import pairwise

from hypothesis import strategies as st

cuts = st.lists(st.integers(0, 2**16), max_size=8)
"""Where bytes are cut into packets."""


def cut(data, where):
    """The packets of bytes that are cut at given places, modulo their length."""
    places = [0, *sorted(place % (len(data) + 1) for place in where), len(data)]
    return [data[begin:end] for begin, end in pairwise(places)]


def broken(data, whole, least=0):
    """Bytes with up to four short stretches replaced, drawn from `data` of hypothesis."""
    made = bytearray(whole)
    for _ in range(data.draw(st.integers(least, 4))):
        at = data.draw(st.integers(0, len(made) - 1))
        made[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    return bytes(made)
