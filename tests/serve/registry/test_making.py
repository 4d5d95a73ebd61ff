"""Models that clients make: copies, models with settings of their own, uploads."""

import asyncio
import hashlib
import json

import pytest
from registry_fakes import serving, until
from tiny_models import write_gguf

from hasten.errors import HastenError, ModelFileError, NotFoundError, UsageError
from hasten.models import load_model

OVERRIDES = {"system": "Speak like a pirate.", "parameters": {"temperature": 0.5, "top_k": 3}}


async def made(models, name, **how):
    return [step.status async for step in models.create(name, **how)]


async def uploaded(models, content):
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"

    async def chunks():
        yield content

    await models.blobs.store(digest, chunks())
    return digest


def own_files(tmp_path):
    return list((tmp_path / "data" / "models").glob("*/*"))


def test_a_model_made_of_another_one_shares_its_engine_and_has_settings(registry, floor, spec):
    async def go():
        async with serving(registry()) as models:
            models.add("a", spec(), at_start=False)
            steps = await made(models, "pirate", source="a:latest", overrides=OVERRIDES)
            assert steps[-1] == "success"
            changed = {"parameters": {"top_k": 5}}
            await made(models, "second", source="pirate", overrides=changed)
            async with models.use("second") as served, models.use("a") as base:
                assert served.engine is base.engine
                assert base.overrides == {}
                assert served.overrides == {
                    "system": "Speak like a pirate.",
                    "parameters": {"temperature": 0.5, "top_k": 5},
                }
            info = models.describe("second")
            assert (info.parent, info.overrides) == ("pirate", served.overrides)
            assert floor.count("start") == 1

    asyncio.run(go())


def test_what_clients_made_is_there_after_a_restart(registry, spec, tmp_path):
    async def go():
        async with serving(registry()) as models:
            models.add("a", spec(), at_start=False)
            await made(models, "pirate", source="a", overrides=OVERRIDES)
            await models.copy("a", "b:other")
        async with serving(registry()) as models:
            await models.start()
            assert {info.name for info in models.list()} == {"pirate", "b:other"}
            assert models.describe("pirate").overrides == OVERRIDES
            async with models.use("b:other"):
                pass
        assert [path.name for path in (tmp_path / "data").iterdir()] == ["models.json"]

    asyncio.run(go())


def test_a_model_of_the_operator_hides_one_of_the_same_name(registry, spec):
    async def go():
        async with serving(registry()) as models:
            models.add("a", spec(), at_start=False)
            await models.copy("a", "b")
        async with serving(registry()) as models:
            models.add("b", spec(max_sequences=1), at_start=False)
            await models.start()
            assert [info.name for info in models.list()] == ["b"]
            for change in (models.copy("b", "b"), made(models, "b", source="b")):
                with pytest.raises(UsageError, match="whoever started the server"):
                    await change
        async with serving(registry()) as models:
            await models.start()
            assert [info.name for info in models.list()] == ["b"]

    asyncio.run(go())


@pytest.mark.parametrize("name", ["../x", "/x", "a/b/c", "", "x\n"])
def test_new_names_are_names(registry, spec, name):
    async def go():
        async with serving(registry()) as models:
            models.add("a", spec(), at_start=False)
            with pytest.raises(UsageError, match="no name"):
                await models.copy("a", name)
            with pytest.raises(UsageError, match="no name"):
                await made(models, name, source="a")
            for source in ("absent", name):
                with pytest.raises(NotFoundError):
                    await made(models, "b", source=source)

    asyncio.run(go())


def test_an_uploaded_gguf_file_becomes_a_model_until_it_is_deleted(registry, floor, tmp_path):
    content = write_gguf(tmp_path / "tiny.gguf").read_bytes()

    async def go():
        async with serving(registry()) as models:
            digest = await uploaded(models, content)
            await made(models, "mine", files={"tiny.gguf": digest}, overrides=OVERRIDES)
            info = models.describe("mine")
            assert (info.format, info.size) == ("gguf", len(content))
            assert info.overrides == OVERRIDES
            await models.copy("mine", "other")
            async with models.use("mine"):
                await models.delete("mine")
                with pytest.raises(NotFoundError):
                    await models.load("mine")
            await asyncio.sleep(0.05)
            assert len(own_files(tmp_path)) == 1
            async with models.use("other"):
                await models.delete("other")
                await asyncio.sleep(0.05)
                assert len(own_files(tmp_path)) == 1
                assert floor.count("stop") == 0
            await until(lambda: not own_files(tmp_path))
            assert floor.count("stop") == 1
            assert models.blobs.has(digest)
            assert json.loads((tmp_path / "data/models.json").read_text())["models"] == []

    asyncio.run(go())


def test_uploaded_files_become_a_directory(registry, tiny_model):
    async def go():
        async with serving(registry()) as models:
            files = {}
            for path in tiny_model.iterdir():
                files[path.name] = await uploaded(models, path.read_bytes())
            await made(models, "mine", files=files)
            async with models.use("mine") as served:
                assert served.model.tokenizer.encode("ab") != []
            assert await models.digest("mine") == models.describe("mine").digest

    asyncio.run(go())


def test_an_upload_that_is_no_model_leaves_nothing(registry, tmp_path):
    async def go():
        async with serving(registry()) as models:
            digest = await uploaded(models, b"GGUF" + bytes(100))
            with pytest.raises(HastenError):
                await made(models, "mine", files={"x.gguf": digest})
            with pytest.raises(NotFoundError):
                models.describe("mine")
            await until(lambda: not own_files(tmp_path))
            with pytest.raises(NotFoundError, match="upload it"):
                await made(models, "mine", files={"x.gguf": f"sha256:{'0' * 64}"})
            with pytest.raises(UsageError, match="one of both"):
                await made(models, "mine")

    asyncio.run(go())


def test_files_of_the_operator_are_never_removed(registry, spec, tiny_model):
    before = {path.name for path in tiny_model.iterdir()}

    async def go():
        async with serving(registry()) as models:
            models.add("a", spec(), at_start=False)
            await models.copy("a", "b")
            await models.load("b")
            for name in ("a", "b"):
                await models.delete(name)
            assert models.list() == []
            await until(lambda: models.running() == [])
            with pytest.raises(NotFoundError):
                await models.delete("a")

    asyncio.run(go())
    assert {path.name for path in tiny_model.iterdir()} == before


def test_a_model_whose_files_have_gone_is_not_listed(registry, tmp_path):
    content = write_gguf(tmp_path / "tiny.gguf").read_bytes()

    async def go():
        async with serving(registry()) as models:
            digest = await uploaded(models, content)
            await made(models, "mine", files={"tiny.gguf": digest})
        own_files(tmp_path)[0].unlink()
        async with serving(registry()) as models:
            await models.start()
            assert models.list() == []
            with pytest.raises(ModelFileError):
                await models.load("mine")
            await models.delete("mine")

    asyncio.run(go())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": "other/9", "models": []}'])
def test_a_damaged_list_of_models_is_told(registry, tmp_path, content):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "models.json").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"models\.json"):
        registry()


def test_where_nothing_can_be_kept_nothing_changes(registry, spec, tmp_path):
    async def go():
        async with serving(registry()) as models:
            models.add("a", spec(), at_start=False)
            (tmp_path / "data").write_text("a file where the directory should be")
            with pytest.raises(HastenError, match="cannot be written"):
                await models.copy("a", "b")
            with pytest.raises(NotFoundError):
                models.describe("b")

    asyncio.run(go())


def test_digests_are_read_once(registry, spec, tiny_model):
    async def go():
        async with serving(registry()) as models:
            models.add("a", spec(), at_start=False)
            await models.start()
            assert models.describe("a").digest is None
            async with models.use("a") as served:
                digests = await asyncio.gather(served.digest(), models.digest("a"))
            assert set(digests) == {load_model(tiny_model).digest()}
            assert models.describe("a").digest == digests[0]

    asyncio.run(go())
