"""Targets over gRPC, against messages that the protocols' own classes wrote."""

import asyncio
import contextlib

import grpc
import grpc_recordings as recorded
import numpy as np
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import UsageError
from hasten.measure.arrivals import ClosedLoop
from hasten.measure.load import run_load
from hasten.measure.records import Answer
from hasten.measure.targets import kserve_grpc, tfserving_grpc
from hasten.measure.targets.http import HttpOptions
from hasten.measure.targets.kserve_grpc import KServeGrpcTarget
from hasten.measure.targets.messages import declare, parse
from hasten.measure.targets.target import TargetError
from hasten.measure.targets.tensors import TensorSpec, random_workload
from hasten.measure.targets.tfserving_grpc import TfServingGrpcTarget
from hasten.measure.workload import Item, Tensors

SECONDS = 60
KSERVE, TFSERVING = kserve_grpc.SERVICE, tfserving_grpc.SERVICE
A = np.array([[1.5, -2]], np.float32)


@contextlib.asynccontextmanager
async def serving(service, answers, credentials=None):
    """Serves methods that answer with bytes or as a function does; notes what came."""
    came = []

    def handler(method, answer):
        async def handle(request, context):
            came.append((method, request, dict(context.invocation_metadata())))
            return answer if isinstance(answer, bytes) else await answer(context)

        return grpc.unary_unary_rpc_method_handler(handle)

    server = grpc.aio.server()
    handlers = {method: handler(method, answer) for method, answer in answers.items()}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("localhost:0", credentials)
    await server.start()
    try:
        yield port, came
    finally:
        await server.stop(None)


def use(make, service, answers, act, **options):
    """What a target does with a server, and what came to it."""

    async def go():
        async with serving(service, answers) as (port, came):
            target = make(f"grpc://127.0.0.1:{port}", options=HttpOptions(**options))
            async with target, asyncio.timeout(SECONDS):
                return await act(target), came

    return asyncio.run(go())


def kserve(url, **more):
    return KServeGrpcTarget(url, "add", version="1", **more)


def tfserving(url, **more):
    return TfServingGrpcTarget(url, "add", version=3, **more)


def infer(inputs):
    async def act(target):
        answer = Answer()
        await target.send(Tensors(inputs), answer)
        return answer

    return act


async def sign(target):
    return await target.signature()


def test_kserve_signatures():
    signature, came = use(kserve, KSERVE, {"ModelMetadata": recorded.KSERVE_METADATA}, sign)
    assert came[0][1] == recorded.KSERVE_METADATA_REQUEST
    assert signature == (TensorSpec("a", "FP32", (-1, 2)), TensorSpec("s", "BYTES", (1,)))


@pytest.mark.parametrize("answer", [recorded.KSERVE_INFER, recorded.KSERVE_INFER_TYPED])
def test_kserve_inferences(answer):
    inputs = {"a": A, "s": np.array([b"hi"], object)}
    answer, came = use(kserve, KSERVE, {"ModelInfer": answer}, infer(inputs), key="secret")
    assert len(answer.events) == 1
    (_, request, metadata) = came[0]
    assert request == recorded.KSERVE_INFER_REQUEST
    assert metadata["authorization"] == "Bearer secret"


def test_tfserving_signatures():
    answers = {"GetModelMetadata": recorded.METADATA}
    signature, came = use(tfserving, TFSERVING, answers, sign)
    assert came[0][1] == recorded.METADATA_REQUEST
    assert signature == (TensorSpec("a", "FP32", (-1, 2)), TensorSpec("s", "BYTES", (-1,)))


@pytest.mark.parametrize(
    ("inputs", "request_bytes"),
    [
        ({"a": A}, recorded.PREDICT_REQUEST),
        ({"s": np.array([b"hi", b"\xff"], object)}, recorded.PREDICT_TEXT_REQUEST),
    ],
)
def test_tfserving_predictions(inputs, request_bytes):
    answer, came = use(tfserving, TFSERVING, {"Predict": recorded.PREDICT}, infer(inputs))
    assert len(answer.events) == 1
    assert came[0][1] == request_bytes


@pytest.mark.parametrize(
    ("name", "words"),
    [("none", "'none'.*odd.*|'none'.*serving"), ("odd", "does not say the shape")],
)
def test_tfserving_signatures_that_do_not_help(name, words):
    def make(url, **more):
        return TfServingGrpcTarget(url, "add", signature_name=name, **more)

    with pytest.raises(TargetError, match=words):
        use(make, TFSERVING, {"GetModelMetadata": recorded.METADATA}, sign)


def test_a_load():
    async def go():
        async with serving(KSERVE, {"ModelInfer": recorded.KSERVE_INFER}) as (port, came):
            target = KServeGrpcTarget(f"grpc://127.0.0.1:{port}", "add")
            workload = random_workload([TensorSpec("a", "FP32", (2, 2))], 20, warmup=1)
            for _ in range(2):  # each in an event loop of its own
                result = await asyncio.to_thread(run_load, target, workload, ClosedLoop(4))
                assert [one.status for one in result.records] == ["completed"] * 20
            return len(came)

    assert asyncio.run(go()) == 42


async def refuse(context):
    await context.abort(grpc.StatusCode.NOT_FOUND, "no model 'add'")


async def break_down(context):
    raise RuntimeError("bug")


async def stall(context):
    await asyncio.sleep(SECONDS)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refuse, "NOT_FOUND: no model 'add'"),
        (stall, "DEADLINE_EXCEEDED"),
        (b"\xff\xff", "malformed"),
        (b"", "no outputs"),
        (b"\x2a\x01", "malformed"),
    ],
)
@pytest.mark.parametrize(
    ("make", "service", "method"),
    [(kserve, KSERVE, "ModelInfer"), (tfserving, TFSERVING, "Predict")],
)
def test_failures(make, service, method, answer, words):
    with pytest.raises(TargetError, match=words):
        use(make, service, {method: answer}, infer({"a": A}), quiet_seconds=0.3)


def test_methods_that_a_server_has_not():
    with pytest.raises(TargetError, match="UNIMPLEMENTED"):
        use(kserve, KSERVE, {}, sign)


def test_outputs_of_a_wrong_size():
    wrong = recorded.KSERVE_INFER[:-10] + b"\x32\x04abcd"
    with pytest.raises(TargetError, match=r"'y'.*4 bytes, not 8"):
        use(kserve, KSERVE, {"ModelInfer": wrong}, infer({"a": A}))
    with pytest.raises(TargetError, match="1 outputs, 2 data"):
        use(kserve, KSERVE, {"ModelInfer": recorded.KSERVE_INFER + b"\x32\0"}, infer({"a": A}))


def test_answers_that_are_too_large():
    with pytest.raises(TargetError, match="RESOURCE_EXHAUSTED"):
        use(kserve, KSERVE, {"ModelInfer": b"\0" * 2000}, infer({"a": A}), max_body=1000)


@pytest.mark.parametrize(("make", "service"), [(kserve, KSERVE), (tfserving, TFSERVING)])
def test_prompts_are_refused(make, service):
    async def act(target):
        await target.send(Item("Hi", 1), Answer())

    with pytest.raises(UsageError, match="not prompts"):
        use(make, service, {}, act)


def test_nobody_serves_there():
    async def go():
        async with serving(KSERVE, {}) as (port, _):
            pass
        async with KServeGrpcTarget(f"grpc://127.0.0.1:{port}", "add") as target:
            await target.send(Tensors({"a": A}), Answer())

    with pytest.raises(TargetError, match="UNAVAILABLE"):
        asyncio.run(go())


def test_whoever_is_cancelled_leaves_nothing_behind():
    async def go():
        over = asyncio.Event()

        async def wait(context):
            context.add_done_callback(lambda _: over.set())
            await asyncio.sleep(SECONDS)

        async with (
            asyncio.timeout(SECONDS),
            serving(KSERVE, {"ModelInfer": wait}) as (port, _),
            KServeGrpcTarget(f"grpc://127.0.0.1:{port}", "add") as target,
        ):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(target.send(Tensors({"a": A}), Answer()), 0.3)
            await over.wait()

    asyncio.run(go())


def test_tls(tmp_path):
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    chain = b"".join(one.bytes() for one in issued.cert_chain_pems)
    credentials = grpc.ssl_server_credentials([(issued.private_key_pem.bytes(), chain)])
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")

    async def go(**options):
        answers = {"ModelInfer": recorded.KSERVE_INFER}
        async with serving(KSERVE, answers, credentials) as (port, _):
            url = f"grpcs://localhost:{port}"
            target = KServeGrpcTarget(url, "add", options=HttpOptions(**options))
            async with target, asyncio.timeout(SECONDS):
                await target.send(Tensors({"a": A}), Answer())

    asyncio.run(go(ca_file=str(tmp_path / "ca.pem")))
    with pytest.raises(TargetError, match="UNAVAILABLE"):
        asyncio.run(go())
    with pytest.raises(UsageError, match="cannot be read"):
        asyncio.run(go(ca_file=str(tmp_path / "none.pem")))


@pytest.mark.parametrize(
    "url", ["grpc://host", "http://host:1", "grpc://:1", "grpc://host:1/path", "grpc://[::1:1"]
)
def test_urls_that_are_none(url):
    with pytest.raises(UsageError, match="URL"):
        KServeGrpcTarget(url, "add")


def test_declared_messages():
    source = """
    message One { repeated string names = 1; map<string, Two> more = 3; bool yes = 4; }
    message Two { One one = 1; double value = 2; bytes data = 15; }
    """
    made = declare("a.b", source)
    two = made["Two"](value=0.5, data=b"x")
    one = made["One"](names=["a", "b"], more={"k": two}, yes=True)
    again = parse(made["One"], one.SerializeToString())
    assert (list(again.names), again.more["k"].value, again.yes) == (["a", "b"], 0.5, True)
    assert declare("a.b", source)["One"] is not made["One"]  # pools are apart


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_an_error(data):
    kind = declare("a", "message One { string name = 1; repeated int64 shape = 2; }")["One"]
    with contextlib.suppress(TargetError):
        parse(kind, data)
