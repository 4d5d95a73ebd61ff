"""The HTTP client of the load: what arrives, however it is cut, and every way that it can fail."""

import asyncio
import ssl

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from odd_server import CLOSE, HANG, LAST, RESET, chunk, head, odd_server, streamed, whole
from packets import broken, cut, cuts

from hasten.errors import UsageError
from hasten.measure.targets.http import HttpClient, HttpOptions, _Connection
from hasten.measure.targets.target import TargetError

SECONDS = 60
"""After which something hangs."""


def ask(*answers, times=1, options=None, together=False, sink=None, body=b"x", **more):
    """Makes requests; gives what the server noted and the replies."""

    async def go():
        async with odd_server(*answers, **more) as server:
            client = HttpClient(server.url, options)

            def request():
                return client.request("POST", "/path", body, sink=sink)

            async with asyncio.timeout(SECONDS):
                if together:
                    replies = await asyncio.gather(*(request() for _ in range(times)))
                else:
                    replies = [await request() for _ in range(times)]
            await client.close()
            return server, replies

    return asyncio.run(go())


def failure(*answers, **more):
    with pytest.raises(TargetError) as caught:
        ask(*answers, **more)
    return str(caught.value)


def test_a_request_and_its_reply():
    options = HttpOptions(headers={"X-One": "1"}, key="secret")
    server, (reply,) = ask(whole(b'{"a":1}', x_more="yes"), options=options, body=b'{"b":2}')
    assert (reply.status, reply.body, reply.headers["x-more"]) == (200, b'{"a":1}', "yes")
    (asked,) = server.requests
    assert (asked.line, asked.body) == ("POST /path HTTP/1.1", b'{"b":2}')
    assert asked.headers["host"] == f"127.0.0.1:{server.port}"
    assert asked.headers["authorization"] == "Bearer secret"
    assert asked.headers["x-one"] == "1"
    assert asked.headers["content-type"] == "application/json"


def test_connections_are_kept():
    server, replies = ask(whole(b"a"), whole(b"b", status=404), streamed(b"c"), times=3)
    assert [(r.status, r.body) for r in replies] == [(200, b"a"), (404, b"b"), (200, b"c")]
    assert server.connections == 1


def test_as_many_connections_as_requests_at_once():
    async def go():
        async with odd_server(whole(b"a"), repeat=True) as server:
            client = HttpClient(server.url)
            for _ in range(3):
                await asyncio.gather(*(client.request("GET", "/") for _ in range(20)))
            await client.close()
            return server

    server = asyncio.run(go())
    assert len(server.requests) == 60
    assert server.connections == 20


def test_a_base_path_stands_before_others():
    async def go():
        async with odd_server(whole(b"")) as server:
            client = HttpClient(f"{server.url}/base/")
            await client.request("GET", "/x")
            await client.close()
            return server.requests[0]

    asked = asyncio.run(go())
    assert asked.line == "GET /base/x HTTP/1.1"
    assert "content-length" not in asked.headers


def test_a_client_is_used_again_in_another_loop():
    async def go(client, server):
        async with server as noted:
            client = client or HttpClient(noted.url)
            assert (await client.request("GET", "/")).body == b"a"
            await client.close()
            return client

    client = asyncio.run(go(None, odd_server(whole(b"a"))))
    with pytest.raises(TargetError, match="no connection"):
        asyncio.run(go(client, odd_server(whole(b"a"))))


def test_pieces_go_to_the_sink_with_their_times():
    pieces = []
    _, (reply,) = ask(
        streamed(b"one", b"two", b"three"), sink=lambda data, at: pieces.append((data, at))
    )
    assert [data for data, _ in pieces] == [b"one", b"two", b"three"]
    times = [at for _, at in pieces]
    assert times[0] < times[1] < times[2] <= reply.at
    assert reply.body == b""


def test_what_came_together_has_one_time():
    pieces = []
    packet = chunk(b"one") + chunk(b"two") + LAST
    answer = [head(transfer_encoding="chunked"), packet]
    _, (reply,) = ask(answer, sink=lambda data, at: pieces.append(at))
    assert pieces == [reply.at] * 2


def test_refusals_do_not_go_to_the_sink():
    pieces = []
    _, (reply,) = ask(whole(b"no", status=503), sink=lambda data, at: pieces.append(data))
    assert (reply.status, reply.body, pieces) == (503, b"no", [])


def test_what_a_sink_raises_ends_the_request():
    def sink(data, at):
        raise TargetError("that is nonsense")

    assert failure([*streamed(b"a"), HANG], sink=sink) == "that is nonsense"


def test_bugs_of_a_sink_are_not_hidden():
    def sink(data, at):
        raise KeyError("bug")

    with pytest.raises(KeyError):
        ask([*streamed(b"a"), HANG], sink=sink)


def test_a_body_may_end_with_the_connection():
    server, replies = ask(*[[head(), b"all", b" of it", CLOSE]] * 2, times=2)
    assert [reply.body for reply in replies] == [b"all of it"] * 2
    assert server.connections == 2


def test_a_server_may_close_after_its_answer():
    server, replies = ask(*[[*whole(b"a", connection="close"), CLOSE]] * 2, times=2)
    assert [reply.body for reply in replies] == [b"a"] * 2
    assert server.connections == 2


def test_a_connection_that_is_said_to_close_is_not_kept():
    server, _ = ask(*[whole(b"a", connection="close")] * 2, times=2)
    assert server.connections == 2


def test_what_only_announces_an_answer_is_passed_over():
    server, replies = ask([head(100), head(103, link="x"), *whole(b"a")], whole(b"b"), times=2)
    assert [(reply.status, reply.body) for reply in replies] == [(200, b"a"), (200, b"b")]
    assert "link" not in replies[0].headers
    assert server.connections == 1


def test_an_answer_without_a_body():
    server, replies = ask([head(204)], whole(b"b"), times=2)
    assert [(reply.status, reply.body) for reply in replies] == [(204, b""), (200, b"b")]
    assert server.connections == 1


def test_a_kept_connection_that_was_closed_meanwhile_is_replaced():
    """Also where the server closes it the moment that the next request comes."""
    server, replies = ask(whole(b"a"), [RESET], whole(b"b"), times=2)
    assert [reply.body for reply in replies] == [b"a", b"b"]
    assert server.connections == 2


def test_a_request_that_is_out_of_time_is_not_sent_again():
    async def go():
        async with odd_server(whole(b"a"), [HANG], whole(b"b")) as server:
            client = HttpClient(server.url, HttpOptions(quiet_seconds=0.1))
            await client.request("GET", "/")
            with pytest.raises(TargetError, match="sent nothing"):
                await client.request("GET", "/")
            await client.close()
            return server

    assert len(asyncio.run(go()).requests) == 2


def test_a_request_is_sent_again_once():
    async def go():
        async with odd_server(*[whole(b"a")] * 3, [RESET], [RESET]) as server:
            client = HttpClient(server.url)
            await asyncio.gather(*(client.request("GET", "/") for _ in range(3)))
            with pytest.raises(TargetError, match="before its answer"):
                await client.request("GET", "/")
            await client.close()
            return server

    server = asyncio.run(go())
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([RESET], "before its answer"),
        ([CLOSE], "before its answer"),
        ([head(content_length=5), b"abc", CLOSE], "in the middle of its answer"),
        ([head(transfer_encoding="chunked"), chunk(b"abc"), CLOSE], "in the middle"),
        ([head(transfer_encoding="chunked"), b"5\r\nab", RESET], "in the middle"),
        ([b"HTTP/1.1 200", CLOSE], "in the middle"),
        ([b"SSH-2.0-OpenSSH\r\n", HANG], "not answer in HTTP/1.1"),
        ([head(transfer_encoding="chunked"), b"what\r\n", HANG], "not answer in HTTP/1.1"),
        ([head(content_length="many"), HANG], "not answer in HTTP/1.1"),
        ([head(101, upgrade="h2c", connection="upgrade"), HANG], "another protocol"),
    ],
)
def test_answers_that_are_none(answer, said):
    assert said in failure(answer)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([head(content_length=0, x_long="a" * 2000), HANG], "head"),
        ([head(content_length=0, **{f"x_{n}": "a" * 90 for n in range(20)}), HANG], "head"),
        ([b"HTTP/1.1 200 OK\r\nx: ", *[b"a" * 500] * 4, HANG], "head"),
        ([b"HTTP/1.1 200 " + b"a" * 2000, HANG], "head"),
        ([head(transfer_encoding="chunked"), *[b"1;" + b"e" * 500] * 4, HANG], "head"),
        ([head(transfer_encoding="chunked"), b"0\r\nt: " + b"a" * 2000, HANG], "head"),
        ([head(content_length=3000), b"a" * 3000, HANG], "body"),
        ([*streamed(b"a" * 600, b"a" * 600), HANG], "body"),
    ],
)
def test_bounds(answer, said):
    options = HttpOptions(max_head=1000, max_body=1000)
    assert failure(answer, options=options).startswith(f"the {said} of")


def test_the_bound_of_a_head_is_none_of_a_body():
    options = HttpOptions(max_head=100)
    _, (reply,) = ask(streamed(*[b"a" * 60] * 5), options=options)
    assert len(reply.body) == 300


def test_the_bound_of_a_body_holds_for_streams():
    options = HttpOptions(max_body=1000)
    answer = [*streamed(*[b"a" * 300] * 4), HANG]
    assert "body" in failure(answer, options=options, sink=lambda data, at: None)


def test_answers_that_do_not_come():
    said = failure([HANG], options=HttpOptions(quiet_seconds=0.1))
    assert "sent nothing for 0.1 s" in said
    said = failure([*streamed(b"a", end=[HANG])], options=HttpOptions(quiet_seconds=0.1))
    assert "sent nothing for 0.1 s" in said


def test_answers_that_do_not_end():
    drip = [head(transfer_encoding="chunked"), *[chunk(b"a"), 0.02] * 100]
    said = failure(drip, options=HttpOptions(quiet_seconds=SECONDS, total_seconds=0.2))
    assert "did not end its answer within 0.2 s" in said


def test_a_slow_stream_is_no_quiet_one():
    options = HttpOptions(quiet_seconds=0.6)
    pieces = [chunk(b"a"), 0.15] * 5
    _, (reply,) = ask([head(transfer_encoding="chunked"), *pieces, LAST], options=options)
    assert reply.body == b"aaaaa"


def test_a_time_out_belongs_to_its_request():
    """A kept connection that was idle is not out of time when it is used again."""

    async def go():
        async with odd_server(whole(b"a"), repeat=True) as server:
            client = HttpClient(server.url, HttpOptions(quiet_seconds=0.5, total_seconds=0.5))
            for _ in range(3):
                assert (await client.request("GET", "/")).body == b"a"
                await asyncio.sleep(0.4)
            await client.close()
            return server.connections

    assert asyncio.run(go()) == 1


def test_nobody_serves_there():
    async def go():
        async with odd_server(whole(b"a")) as server:
            url = server.url
        await HttpClient(url).request("GET", "/")

    with pytest.raises(TargetError, match="no connection to 127"):
        asyncio.run(go())


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70, "a..b"])
def test_no_such_host(host):
    with pytest.raises(TargetError, match="no connection"):
        asyncio.run(HttpClient(f"http://{host}:1").request("GET", "/"))


def test_whoever_is_cancelled_hangs_up():
    async def go():
        async with odd_server([head(content_length=9), b"abc", HANG], whole(b"b")) as server:
            client = HttpClient(server.url)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.request("GET", "/"), 0.1)
            async with asyncio.timeout(SECONDS):
                while not server.left:
                    await asyncio.sleep(0.01)
            assert (await client.request("GET", "/")).body == b"b"
            await client.close()
            return server.connections

    assert asyncio.run(go()) == 2


def test_more_than_was_asked_for_is_not_the_next_answer():
    twice = whole(b"a")[0] + whole(b"evil")[0]
    server, replies = ask([twice], whole(b"b"), times=2)
    assert [reply.body for reply in replies] == [b"a", b"b"]
    assert server.connections == 2


def test_what_comes_unasked_later_is_not_the_next_answer():
    async def go():
        late = [*whole(b"a"), *whole(b"evil")]
        async with odd_server(late, whole(b"b")) as server:
            client = HttpClient(server.url)
            assert (await client.request("GET", "/")).body == b"a"
            async with asyncio.timeout(SECONDS):
                while not server.left:
                    await asyncio.sleep(0.01)
            assert (await client.request("GET", "/")).body == b"b"
            await client.close()

    asyncio.run(go())


def test_an_answer_before_the_end_of_the_request_closes():
    async def answer_early(reader, writer):
        try:
            writer.write(whole(b"too large", status=413)[0])
            await reader.read(100)
            await asyncio.sleep(SECONDS)
        finally:
            writer.transport.abort()

    async def go():
        server = await asyncio.start_server(answer_early, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            client = HttpClient(f"http://127.0.0.1:{port}")
            reply = await client.request("POST", "/", b"x" * 2**24)
            assert (reply.status, reply.body) == (413, b"too large")
            assert not client._idle
            await client.close()

    asyncio.run(go())


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:80",
        "ftp://host",
        "http://",
        "http://host:99999",
        "http://[::1",
        "http://user@host",
        "http://host/?q=1",
        "http://host/#f",
        "http://host/a b",
        "http://host/é",
    ],
)
def test_urls_that_are_none(url):
    with pytest.raises(UsageError, match=r"http|URL"):
        HttpClient(url)


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\nb", "\0", "é"])
def test_headers_that_are_none(value):
    with pytest.raises(UsageError, match="header"):
        HttpClient("http://host", HttpOptions(key=value))


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def test_tls(authority, tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")

    async def go(host, **options):
        async with odd_server(streamed(b"a", b"b"), ssl=context, repeat=True) as server:
            client = HttpClient(f"https://{host}:{server.port}", HttpOptions(**options))
            try:
                bodies = [(await client.request("GET", "/")).body for _ in range(2)]
                return bodies, server.connections
            finally:
                await client.close()

    trusted = {"ca_file": str(tmp_path / "ca.pem")}
    assert asyncio.run(go("localhost", **trusted)) == ([b"ab", b"ab"], 1)
    with pytest.raises(TargetError, match="no connection"):
        asyncio.run(go("localhost"))
    with pytest.raises(TargetError, match="no connection"):
        asyncio.run(go("127.0.0.1", **trusted))
    with pytest.raises(UsageError, match="cannot be read"):
        asyncio.run(go("localhost", ca_file=str(tmp_path / "none.pem")))


class FakeTransport(asyncio.Transport):
    def __init__(self):
        super().__init__()
        self.aborted = False

    def write(self, data):
        pass

    def abort(self):
        self.aborted = True

    def get_write_buffer_size(self):
        return 0


def feed(packets, **options):
    """What a connection makes of packets and the end: a reply or an error."""

    async def go():
        loop = asyncio.get_running_loop()
        connection = _Connection("there", HttpOptions(**options), loop)
        connection.connection_made(FakeTransport())
        pieces = []
        sink = lambda data, at: pieces.append(data)  # noqa: E731
        task = loop.create_task(connection.exchange(b"", sink, loop.time))
        await asyncio.sleep(0)
        for packet in packets:
            connection.data_received(packet)
        connection.connection_lost(None)
        try:
            reply = await task
        except TargetError as error:
            return str(error)
        return reply.status, b"".join(pieces) + reply.body, reply.headers

    return asyncio.run(go())


WHOLE = b"".join([head(100), head(x="1", transfer_encoding="chunked"), chunk(b"one"), chunk(b"2")])


@given(cuts)
def test_where_packets_are_cut_makes_no_difference(where):
    headers = {"x": "1", "transfer-encoding": "chunked"}
    assert feed(cut(WHOLE + LAST, where)) == (200, b"one2", headers)


@given(st.integers(0, len(WHOLE)))
def test_what_is_cut_off_is_an_error(end):
    assert isinstance(feed([WHOLE[:end]]), str)


@given(st.data())
def test_broken_answers_end_as_errors(data):
    outcome = feed([broken(data, WHOLE + LAST)], max_body=1000)
    assert isinstance(outcome, str) or outcome[0] >= 100


@given(st.binary(max_size=200))
def test_any_bytes_at_all(data):
    assert isinstance(feed([data]), (str, tuple))
