"""The Pareto front: what nothing else beats at both speed and accuracy."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from made_up import accuracy, interval

from hasten.optimize.front import pareto_front


@dataclass(eq=False)
class Point:
    kl: float
    speed: float

    @property
    def accuracy(self):
        return None if self.kl is None else accuracy(kl=self.kl)

    @property
    def speedup(self):
        return None if self.speed is None else interval(self.speed)


figures = st.one_of(st.none(), st.integers(1, 6).map(float))


@given(st.lists(st.builds(Point, figures, figures), max_size=12))
def test_the_front_is_what_no_other_beats(points):
    front = pareto_front(points)
    known = [one for one in points if one.kl is not None and one.speed is not None]

    def beaten(one):
        return any(
            (other.kl <= one.kl and other.speed > one.speed)
            or (other.kl < one.kl and other.speed >= one.speed)
            for other in known
        )

    places = {(one.kl, one.speed) for one in known if not beaten(one)}
    assert {(one.kl, one.speed) for one in front} == places
    assert len(front) == len(places)
    assert [one.kl for one in front] == sorted(one.kl for one in front)
    assert [one.speed for one in front] == sorted(one.speed for one in front)
