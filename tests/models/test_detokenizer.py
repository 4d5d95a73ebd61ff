import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import (
    HARD_TEXTS,
    byte_level_metadata,
    copy_of,
    sentencepiece_metadata,
    tiny_byte_level,
    tiny_sentencepiece,
)
from tokenizers import decoders

from hasten.errors import UnsupportedModelError
from hasten.models.detokenizer import ByteText
from hasten.models.gguf import read_gguf
from hasten.models.source import find_model
from hasten.models.tokenizer import Tokenizer
from hasten.models.tokenizer_files import Parts

IDS = st.lists(st.integers(0, 1600), max_size=60)
FOX = "fox 🦊 é"


@pytest.fixture(scope="module")
def byte_level():
    return Tokenizer.from_gguf(byte_level_metadata(tiny_byte_level(), "gpt-2"))


@pytest.fixture(scope="module")
def sentencepiece_bpe():
    return Tokenizer.from_gguf(sentencepiece_metadata(tiny_sentencepiece("bpe"), "llama"))


def of_backend(backend):
    return Tokenizer(Parts(backend, {}, frozenset()))


def with_decoder(decoder):
    backend = copy_of(tiny_byte_level())
    backend.decoder = decoder
    return of_backend(backend)


def pieces(tokenizer, ids, skip_special=True):
    stream = tokenizer.detokenizer(skip_special=skip_special)
    return [*(stream.push(i) for i in ids), stream.flush()]


def assert_joins(tokenizer, ids):
    for skip in (True, False):
        whole = tokenizer.decode(ids, skip_special=skip)
        assert "".join(pieces(tokenizer, ids, skip)) == whole


@settings(max_examples=150, deadline=None)
@given(ids=IDS)
def test_byte_level_pieces_join(byte_level, ids):
    assert_joins(byte_level, ids)


@settings(max_examples=150, deadline=None)
@given(ids=st.lists(st.one_of(st.integers(0, 820), st.integers(3, 258)), max_size=60))
def test_sentencepiece_pieces_join(sentencepiece_bpe, ids):
    assert_joins(sentencepiece_bpe, ids)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_comes_back_character_by_character(byte_level, sentencepiece_bpe, text):
    for tokenizer in (byte_level, sentencepiece_bpe):
        ids = tokenizer.encode(text, parse_special=False, add_special=False)
        got = pieces(tokenizer, ids)
        assert "".join(got) == tokenizer.decode(ids)
        if "\ufffd" not in text:
            assert not any("\ufffd" in piece for piece in got)


@settings(max_examples=60, deadline=None)
@given(ids=IDS)
@pytest.mark.parametrize(
    "decoder",
    [
        None,
        decoders.Metaspace("Ġ", "always"),
        decoders.Metaspace("Ġ", "never"),
        decoders.Sequence([decoders.Replace("Ġ", " "), decoders.Strip(" ", 1, 0)]),
        decoders.Sequence(
            [
                decoders.Replace("Ġ", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 2, 0),
            ]
        ),
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace("Ġ", "first")]),
    ],
    ids=str,
)
def test_other_decoders_join(decoder, ids):
    assert_joins(with_decoder(decoder), ids)


@pytest.mark.parametrize(
    "decoder", [decoders.CTC(), decoders.WordPiece(), decoders.Strip(" ", 0, 1)], ids=str
)
def test_decoders_that_cannot_be_followed_are_refused(decoder):
    with pytest.raises(UnsupportedModelError, match="decoder has the step"):
        with_decoder(decoder).detokenizer()


def test_hard_texts_join(byte_level, sentencepiece_bpe):
    for tokenizer in (byte_level, sentencepiece_bpe):
        for text in HARD_TEXTS:
            assert_joins(tokenizer, tokenizer.encode(text))


def test_a_character_comes_with_its_last_byte(byte_level):
    ids = byte_level.encode(FOX)
    got = pieces(byte_level, ids)
    assert "".join(got) == FOX
    assert "" in got  # the fox has four bytes in several tokens
    assert all("\ufffd" not in piece for piece in got)


def byte_ids(tokenizer, data):
    """One token for each byte of a byte-level tokenizer."""
    from hasten.models.detokenizer import _byte_alphabet

    spelled = {byte: char for char, byte in _byte_alphabet().items()}
    vocab = tokenizer._backend.get_vocab()
    return [vocab[spelled[byte]] for byte in data]


def test_invalid_bytes_come_out_as_soon_as_they_cannot_complete(byte_level):
    stream = byte_level.detokenizer()
    start, second, letter = byte_ids(byte_level, b"\xe2\x82a")
    assert stream.push(start) == ""
    assert stream.push(second) == ""
    assert stream.push(letter) == "\ufffda"
    assert stream.push(start) == ""
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_leading_space_is_stripped_once(sentencepiece_bpe):
    ids = sentencepiece_bpe.encode("hi hi  hi", add_special=False)
    assert "".join(pieces(sentencepiece_bpe, ids)) == "hi hi  hi"
    assert pieces(sentencepiece_bpe, ids)[0][:1] != " "


def test_byte_tokens_wait_for_the_end_of_their_run(sentencepiece_bpe):
    backend = sentencepiece_bpe._backend
    run = [backend.token_to_id(f"<0x{byte:02X}>") for byte in "é🦊".encode()]
    letter = backend.token_to_id("a")
    assert pieces(sentencepiece_bpe, [*run, letter]) == ["", "", "", "", "", "", "é🦊a", ""]
    assert pieces(sentencepiece_bpe, run)[-1] == "é🦊"
    # One byte too few, and all of the run is invalid, as in the tokenizers library.
    assert pieces(sentencepiece_bpe, run[:-1])[-1] == "\ufffd" * 5


def test_special_tokens_do_not_end_a_run_of_bytes(sentencepiece_bpe):
    run = [sentencepiece_bpe._backend.token_to_id(t) for t in ("<0xC3>", "</s>", "<0xA9>")]
    assert_joins(sentencepiece_bpe, run)
    assert "".join(pieces(sentencepiece_bpe, run)) == "é"


def test_unknown_ids_leave_no_text(byte_level):
    assert pieces(byte_level, [10**6]) == ["", ""]


@pytest.mark.model
def test_smollm2_pieces_join():
    tokenizer = Tokenizer.from_gguf(read_gguf(find_model("smollm2")[1]).metadata)

    @settings(max_examples=60, deadline=None)
    @given(ids=st.lists(st.integers(0, 49200), max_size=60))
    def check(ids):
        assert_joins(tokenizer, ids)

    check()


def as_text(contents, ids):
    stream = ByteText(contents, frozenset())
    return "".join([*(stream.push(i) for i in ids), stream.flush()])


@settings(max_examples=100, deadline=None)
@given(ids=IDS)
def test_bytes_of_tokens_join_to_the_text(byte_level, ids):
    contents = byte_level.token_bytes(1700)
    assert len(contents) == 1700
    assert as_text(contents, ids) == byte_level.decode(ids, skip_special=False)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_bytes_keep_the_space_before_a_text(sentencepiece_bpe, text):
    ids = sentencepiece_bpe.encode(text, add_special=False, parse_special=False)
    contents = sentencepiece_bpe.token_bytes(sentencepiece_bpe.vocab_size)
    assert as_text(contents, ids) == " " * bool(ids) + text


def test_special_tokens_leave_no_bytes_in_a_text(byte_level):
    stream = ByteText(byte_level.token_bytes(1500), byte_level.special_ids)
    ids = byte_level.encode("a<|im_end|>b")
    assert "".join(map(stream.push, ids)) == "ab"
    assert stream.push(10**6) == ""


def test_bytes_after_the_first_token():
    contents = with_decoder(decoders.Metaspace()).token_bytes(1500)
    plain = with_decoder(None).token_bytes(1500)
    for token in (300, 700, 1200):
        name = tiny_byte_level().id_to_token(token)
        assert contents[token] == name.replace("▁", " ").encode()
        assert plain[token] == f" {name}".encode()
