"""Models from a Hub, which here is a server on this machine."""

import asyncio
from contextlib import suppress

import pytest
from fake_hub import FakeHub, sha256
from registry_fakes import serving, until
from tiny_models import write_gguf

from hasten.errors import HastenError, NotFoundError, UnsupportedModelError, UsageError

NAME = "org/tiny"


@pytest.fixture(scope="module")
def files(tiny_model):
    return {path.name: path.read_bytes() for path in tiny_model.iterdir()}


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path.read_bytes()


@pytest.fixture
def hub():
    return FakeHub()


async def pulled(models, name):
    return [step async for step in models.pull(name)]


def hub_files(tmp_path):
    for _ in range(100):
        with suppress(FileNotFoundError):  # a directory that is being deleted
            return [path for path in (tmp_path / "data" / "hub").rglob("*") if path.is_symlink()]
    raise AssertionError("the directory never stands still")


def test_a_pulled_model_serves_and_is_known_after_a_restart(registry, hub, files, tmp_path):
    hub.publish(NAME, {**files, "pytorch_model.bin": b"code", "README.md": b"read me"})

    async def go(url):
        async with serving(registry(hub=url)) as models:
            steps = await pulled(models, f"hf.co/{NAME}")
            assert steps[0].status == "pulling manifest"
            assert steps[-1].status == "success"
            weights = [step for step in steps if step.digest and step.digest.startswith("sha256")]
            size = len(files["model.safetensors"])
            assert weights[-1].digest == f"sha256:{sha256(files['model.safetensors'])}"
            assert weights[-1].completed == weights[-1].total == size
            async with models.use(NAME) as served:
                assert served.kind == "generate"
            assert models.describe(NAME).size == sum(map(len, files.values()))
        async with serving(registry(hub="http://127.0.0.1:1")) as models:
            await models.start()
            assert [info.name for info in models.list()] == [NAME]
            async with models.use(f"{NAME}:latest"):
                pass

    with hub.running() as url:
        asyncio.run(go(url))
    fetched = {path.split("/")[-1] for _, path in hub.asked if "resolve" in path}
    assert fetched == set(files)


def test_a_tag_chooses_the_file(registry, hub, gguf_file, tmp_path):
    hub.publish("org/many", {"tiny-Q4_0.gguf": gguf_file, "tiny-Q8_0.gguf": gguf_file + b"\0"})

    async def go(url):
        async with serving(registry(hub=url)) as models:
            with pytest.raises(UsageError, match="several GGUF files") as told:
                await pulled(models, "org/many")
            assert "tiny-Q8_0.gguf" in str(told.value)
            with pytest.raises(NotFoundError, match="Q2_K"):
                await pulled(models, "org/many:Q2_K")
            await pulled(models, "org/many:q8_0")
            assert models.describe("org/many:q8_0").path.endswith("tiny-Q8_0.gguf")
            await pulled(models, "org/many:Q4_0")
            assert len(hub_files(tmp_path)) == 2
            await models.delete("org/many:q8_0")
            await until(lambda: len(hub_files(tmp_path)) == 1)
            await models.load("org/many:Q4_0")
            await models.delete("org/many:Q4_0")
            await until(lambda: not (tmp_path / "data/hub/models--org--many").exists())

    with hub.running() as url:
        asyncio.run(go(url))


def test_a_new_revision_takes_the_place_of_the_old_one(registry, floor, hub, files, tmp_path):
    async def go(url):
        async with serving(registry(hub=url)) as models:
            hub.publish(NAME, files, "a")
            await pulled(models, NAME)
            async with models.use(NAME) as old:
                hub.publish(NAME, {**files, "generation_config.json": b"{}"}, "b")
                await pulled(models, NAME)
                assert "b" * 40 in models.describe(NAME).path
                async with models.use(NAME) as new:
                    assert new.engine is not old.engine
                assert old.model.path.joinpath("config.json").is_file()
            await until(lambda: not old.model.path.exists())
            assert floor.count("stop") == 1
            assert new.model.path.joinpath("model.safetensors").is_file()

    with hub.running() as url:
        asyncio.run(go(url))


def test_pulling_again_what_is_here_changes_nothing(registry, floor, hub, files):
    hub.publish(NAME, files)

    async def go(url):
        async with serving(registry(hub=url)) as models:
            await pulled(models, NAME)
            await models.load(NAME)
            both = await asyncio.gather(pulled(models, NAME), pulled(models, NAME))
            assert [steps[-1].status for steps in both] == ["success"] * 2
            assert models.describe(NAME).state == "ready"

    with hub.running() as url:
        asyncio.run(go(url))
    gets = [path for method, path in hub.asked if method == "GET" and "resolve" in path]
    assert len(gets) == len(set(gets))


def test_what_hasten_does_not_run_is_refused_before_its_weights_come(
    registry, hub, files, tmp_path
):
    config = files["config.json"].replace(b"llama", b"alpaca")
    hub.publish(NAME, {**files, "config.json": config})

    async def go(url):
        async with serving(registry(hub=url)) as models:
            with pytest.raises(UnsupportedModelError, match="alpaca"):
                await pulled(models, NAME)
            with pytest.raises(NotFoundError):
                models.describe(NAME)
            await until(lambda: not hub_files(tmp_path))

    with hub.running() as url:
        asyncio.run(go(url))
    assert not any("safetensors" in path for _, path in hub.asked)


def test_pickled_weights_are_not_downloaded(registry, hub, files):
    del (kept := dict(files))["model.safetensors"]
    hub.publish(NAME, {**kept, "pytorch_model.bin": b"code"})

    async def go(url):
        async with serving(registry(hub=url)) as models:
            with pytest.raises(UnsupportedModelError, match="neither safetensors nor GGUF"):
                await pulled(models, NAME)

    with hub.running() as url:
        asyncio.run(go(url))
    assert not any("resolve" in path for _, path in hub.asked)


def test_damaged_weights_are_refused_and_come_anew(registry, hub, files):
    hub.publish(NAME, files)
    hub.damaged.add("model.safetensors")

    async def go(url):
        async with serving(registry(hub=url)) as models:
            with pytest.raises(HastenError, match="damaged"):
                await pulled(models, NAME)
            hub.damaged.clear()
            await pulled(models, NAME)
            await models.load(NAME)

    with hub.running() as url:
        asyncio.run(go(url))


def test_leaving_a_pull_ends_the_download(registry, hub, files, tmp_path):
    size = 64 << 20
    hub.publish(NAME, {**files, "model.safetensors": bytes(size)})
    hub.slow.add("model.safetensors")

    async def go(url):
        async with serving(registry(hub=url)) as models:
            steps = models.pull(NAME)
            async for step in steps:
                if step.total == size and step.completed:
                    break
            assert step.completed <= size // 2
            await steps.aclose()
            hub.slow.clear()
            await until(lambda: not list((tmp_path / "data").rglob("*.incomplete")))
            blobs = (tmp_path / "data").rglob("blobs/*")
            assert all(path.stat().st_size < size for path in blobs)
            with pytest.raises(NotFoundError):
                models.describe(NAME)

    with hub.running() as url:
        asyncio.run(go(url))


@pytest.mark.parametrize("name", ["org/absent", "absent"])
def test_what_the_hub_has_not_is_not_found(registry, hub, name):
    async def go(url):
        async with serving(registry(hub=url)) as models:
            with pytest.raises(NotFoundError):
                await pulled(models, name)

    with hub.running() as url:
        asyncio.run(go(url))


def test_files_that_lead_elsewhere_are_left_alone(registry, hub, files, tmp_path):
    hub.publish(NAME, {**files, "../../../../evil.json": b"{}", "/evil.json": b"{}"})

    async def go(url):
        async with serving(registry(hub=url)) as models:
            await pulled(models, NAME)

    with hub.running() as url:
        asyncio.run(go(url))
    assert not any("evil" in path for _, path in hub.asked)


def test_without_a_network_the_error_says_so(registry):
    async def go():
        async with serving(registry(hub="http://127.0.0.1:1")) as models:
            with pytest.raises(HastenError, match="could not be downloaded") as told:
                await pulled(models, NAME)
            assert "network" in str(told.value)

    asyncio.run(go())


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../b", "https://x/y", "a/b/c"])
def test_paths_and_urls_are_no_names(registry, name):
    async def go():
        async with serving(registry()) as models:
            with pytest.raises(UsageError):
                await pulled(models, name)

    asyncio.run(go())


def test_names_of_the_operator_are_not_pulled(registry, spec):
    async def go():
        async with serving(registry(hub="http://127.0.0.1:1")) as models:
            models.add(NAME, spec(), at_start=False)
            steps = await pulled(models, NAME)
            assert steps[-1].status == "success"

    asyncio.run(go())


@pytest.mark.model
def test_a_model_that_a_package_carries_needs_no_hub(registry):
    async def go():
        async with serving(registry(hub="http://127.0.0.1:1")) as models:
            await pulled(models, "minilm")
            info = models.describe("minilm")
            assert (info.kind, info.capabilities) == ("embed", ("embedding",))

    asyncio.run(go())
