import asyncio

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hasten.errors import CapacityError, OverloadError, RateLimitError
from hasten.serve import admission as module
from hasten.serve.admission import Admission
from hasten.serve.jobs import Client
from hasten.serve.settings import Limits

ANYONE = Client()
CAPACITY = 4


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def admission(queue=6, in_flight=100, clock=None, refused=None):
    return Admission(
        Limits(queue=queue, in_flight=in_flight),
        lambda model: CAPACITY,
        refused=refused or (lambda reason: None),
        clock=clock or Clock(),
    )


class Traffic(RuleBasedStateMachine):
    """Any mix of requests that come, end, fail and are released twice."""

    CLIENTS = (
        Client(),
        Client(name="a", concurrency=3),
        Client(name="b", requests_per_minute=10),
        Client(name="c", tokens_per_minute=100, concurrency=5),
    )

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.reasons = []
        self.admission = admission(10, 20, self.clock, self.reasons.append)
        self.held = []
        self.admitted = []
        self.told = []

    @rule(
        client=st.sampled_from(CLIENTS),
        model=st.sampled_from("xyz"),
        sequences=st.integers(1, 16),
    )
    def come(self, client, model, sequences):
        before = len(self.reasons)
        try:
            ticket = self.admission.admit(client, model, sequences)
        except OverloadError as error:
            self.told.append(error.retry_after)
            assert len(self.reasons) == before + 1
        except CapacityError:
            assert sequences > CAPACITY + 10
        else:
            self.held.append((ticket, client, model, sequences))
            self.admitted.append((self.clock.now, client))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), tokens=st.integers(0, 80))
    def end(self, data, tokens):
        ticket, client, _, _ = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.admission.used(client, tokens)
        ticket.release()
        ticket.release()

    @precondition(lambda self: self.held)
    @rule()
    def fail(self):
        ticket, *_ = self.held.pop()
        with pytest.raises(KeyError), ticket:
            raise KeyError

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds):
        self.clock.now += seconds

    @invariant()
    def bounds_hold(self):
        for model in "xyz":
            mine = sum(n for _, _, m, n in self.held if m == model)
            assert mine <= CAPACITY + 10
            assert self.admission.in_flight().get(model, 0) == mine
        assert sum(n for *_, n in self.held) <= 20
        for client in self.CLIENTS:
            running = sum(c == client for _, c, _, _ in self.held)
            assert client.concurrency is None or running <= client.concurrency

    @invariant()
    def rates_hold(self):
        times = [time for time, client in self.admitted if client.name == "b"]
        for first, start in enumerate(times):
            for count, time in enumerate(times[first:], 1):
                assert count <= 10 * (1 + (time - start) / 60) + 1e-3

    @invariant()
    def the_refused_are_told_when_to_come_back(self):
        assert all(0 < seconds <= 60 * 60 for seconds in self.told)

    def teardown(self):
        for ticket, *_ in self.held:
            ticket.release()
        assert self.admission.in_flight() == {}
        self.admission.drain()
        asyncio.run(asyncio.wait_for(self.admission.wait_idle(), 1))


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_full_queue_refuses_and_says_when_to_come_back():
    clock, reasons = Clock(), []
    door = admission(queue=6, clock=clock, refused=reasons.append)
    tickets = [door.admit(ANYONE, "m") for _ in range(10)]
    for _ in range(5):
        clock.now += 2.0
        tickets.pop().release()
        tickets.append(door.admit(ANYONE, "m"))
    with pytest.raises(OverloadError, match="model 'm' has as many") as caught:
        door.admit(ANYONE, "m", 3)
    assert type(caught.value) is OverloadError
    assert caught.value.retry_after == pytest.approx(6.0)
    assert "10 sequences" in str(caught.value)
    assert reasons == ["queue"]
    door.admit(ANYONE, "other")


def test_the_server_has_a_bound_of_its_own():
    reasons = []
    door = admission(queue=6, in_flight=12, refused=reasons.append)
    door.admit(ANYONE, "a", 10)
    with pytest.raises(OverloadError, match="this server"):
        door.admit(ANYONE, "b", 3)
    assert reasons == ["server"]
    door.admit(ANYONE, "b", 2)


def test_what_never_fits_is_not_called_an_overload():
    with pytest.raises(CapacityError, match="at most 10"):
        admission(queue=6).admit(ANYONE, "m", 11)


def test_a_key_has_so_many_requests_at_once():
    door, client = admission(), Client(name="k", concurrency=2)
    first, _ = door.admit(client, "m"), door.admit(client, "n")
    with pytest.raises(RateLimitError, match="'k' has 2 requests under way; allowed: 2 at once"):
        door.admit(client, "m")
    door.admit(ANYONE, "m")
    first.release()
    door.admit(client, "m")


def test_a_key_has_so_many_requests_a_minute():
    clock, reasons = Clock(), []
    door, client = admission(clock=clock, refused=reasons.append), Client(requests_per_minute=30)
    for _ in range(30):
        door.admit(client, "m").release()
    with pytest.raises(RateLimitError) as caught:
        door.admit(client, "m")
    assert caught.value.retry_after == pytest.approx(2.0)
    assert reasons == ["requests"]
    clock.now += caught.value.retry_after
    door.admit(client, "m").release()


def test_what_is_refused_costs_nothing():
    clock = Clock()
    door, client = admission(queue=0, clock=clock), Client(requests_per_minute=5)
    full = door.admit(ANYONE, "m", 4)
    for _ in range(50):
        with pytest.raises(OverloadError, match="model"):
            door.admit(client, "m")
    full.release()
    for _ in range(5):
        door.admit(client, "m").release()


def test_a_key_pays_its_debt_of_tokens():
    clock, reasons = Clock(), []
    door, client = admission(clock=clock, refused=reasons.append), Client(tokens_per_minute=600)
    with door.admit(client, "m"):
        door.used(client, 700)
    with pytest.raises(RateLimitError, match="tokens; allowed: 600 a minute") as caught:
        door.admit(client, "m")
    assert caught.value.retry_after == pytest.approx(10.0)
    assert reasons == ["tokens"]
    clock.now += caught.value.retry_after
    door.admit(client, "m")


def test_a_drain_refuses_everything_and_waits_for_what_runs():
    async def run():
        reasons = []
        door = admission(refused=reasons.append)
        ticket = door.admit(ANYONE, "m")
        door.drain()
        assert door.draining
        with pytest.raises(OverloadError, match="shutting down"):
            door.admit(ANYONE, "m")
        with pytest.raises(OverloadError, match="shutting down"):
            await door.wait_turn(ANYONE, "m")
        assert reasons == ["draining", "draining"]
        idle = asyncio.ensure_future(door.wait_idle())
        await asyncio.sleep(0)
        assert not idle.done()
        ticket.release()
        await asyncio.wait_for(idle, 1)

    asyncio.run(run())


def test_models_that_nobody_uses_are_forgotten(monkeypatch):
    monkeypatch.setattr(module, "_REMEMBERED", 3)
    door = admission()
    for number in range(50):
        door.admit(ANYONE, str(number)).release()
    assert len(door._models) <= 3


def started(door, count, client=ANYONE, sequences=1):
    return [asyncio.ensure_future(door.wait_turn(client, "m", sequences)) for _ in range(count)]


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_batches_wait_for_their_window_in_order():
    async def run():
        door = admission()
        waiting = started(door, 20)
        await settle()
        assert [task.done() for task in waiting] == [True] * 8 + [False] * 12
        door.admit(ANYONE, "m", 10).release()
        for number in range(20):
            assert waiting[number].done()
            waiting[number].result().release()
            await settle()
        assert door.in_flight() == {}

    asyncio.run(run())


def test_a_wide_request_of_a_batch_is_not_overtaken_for_ever():
    async def run():
        door = admission()
        first = started(door, 8)
        await settle()
        wide, small = started(door, 1, sequences=10), started(door, 1)
        for task in first:
            await settle()
            assert not wide[0].done()
            assert not small[0].done()
            task.result().release()
        await settle()
        assert wide[0].done()
        assert not small[0].done()
        wide[0].result().release()
        await settle()
        small[0].result().release()
        assert door.in_flight() == {}

    asyncio.run(run())


@pytest.mark.parametrize("granted_first", [False, True])
def test_who_stops_waiting_leaves_no_trace(granted_first):
    async def run():
        door = admission()
        first = started(door, 8)
        await settle()
        gone, after = started(door, 1)[0], started(door, 1)[0]
        await settle()
        if granted_first:
            first.pop().result().release()
            gone.cancel()
        else:
            gone.cancel()
            await settle()
            first.pop().result().release()
        await settle()
        assert gone.cancelled()
        assert door.in_flight() == {"m": 8}
        after.result().release()
        for task in first:
            task.result().release()
        assert door.in_flight() == {}
        await asyncio.wait_for(door.wait_idle(), 1)

    asyncio.run(run())


def test_the_head_that_stops_waiting_lets_the_next_through():
    async def run():
        door = admission()
        first = started(door, 7)
        await settle()
        wide, small = started(door, 1, sequences=5)[0], started(door, 1)[0]
        await settle()
        assert not small.done()
        wide.cancel()
        await settle()
        assert small.done()
        for task in [*first, small]:
            task.result().release()

    asyncio.run(run())


def test_a_drain_ends_waiting_for_turns_and_for_rates():
    async def run():
        door = admission()
        held = started(door, 8)
        await settle()
        poor = Client(name="k", tokens_per_minute=1)
        door.used(poor, 1000)
        waiting = started(door, 3) + started(door, 2, client=poor)
        await settle()
        door.drain()
        ends = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
        assert [type(end) for end in ends] == [OverloadError] * 5
        for task in held:
            task.result().release()
        await asyncio.wait_for(door.wait_idle(), 1)

    asyncio.run(run())


def test_batches_wait_until_their_key_may():
    async def run():
        door = Admission(Limits(), lambda model: 4)
        client = Client(name="k", tokens_per_minute=60_000)
        door.used(client, 60_100)
        ticket = await asyncio.wait_for(door.wait_turn(client, "m"), 5)
        door.admit(client, "m").release()  # the debt is paid
        ticket.release()

    asyncio.run(run())


def test_batches_take_no_place_of_requests():
    async def run():
        door = admission(queue=6)
        held = started(door, 8)
        await settle()
        door.admit(ANYONE, "m", 10)
        assert door.in_flight() == {"m": 18}
        assert all(task.done() for task in held)

    asyncio.run(run())
