import json
from datetime import datetime

import pytest
from chat_templates import CHATML, GEMMA, LLAMA2, SYSTEM, TALK, TEMPLATES, TOOLS
from tiny_tokenizers import byte_level_metadata, tiny_byte_level

from hasten.errors import HastenError, ModelFileError, UnsupportedModelError, UsageError
from hasten.models import chat
from hasten.models.chat import ChatTemplate
from hasten.models.gguf import read_gguf
from hasten.models.source import find_model
from hasten.models.tokenizer import Tokenizer

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CASES = [
    pytest.param(source, messages, id=f"{name}-{i}")
    for name, (source, talks) in TEMPLATES.items()
    for i, messages in enumerate(talks)
]


def expected(source, messages, **values):
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template([messages], chat_template=source, **(TOKENS | values))
    return rendered[0]


@pytest.mark.parity
@pytest.mark.parametrize(("source", "messages"), CASES)
def test_rendering_equals_transformers(source, messages):
    template = ChatTemplate(source, **TOKENS)
    for prompt in (True, False):
        for tools in (None, TOOLS):
            got = template.render(messages, add_generation_prompt=prompt, tools=tools)
            assert got == expected(source, messages, add_generation_prompt=prompt, tools=tools)


@pytest.mark.parity
def test_extra_values_equal_transformers():
    source, _ = TEMPLATES["qwen"]
    template = ChatTemplate(source)
    for thinking in (True, False):
        got = template.render(TALK, enable_thinking=thinking)
        assert got == expected(source, TALK, add_generation_prompt=True, enable_thinking=thinking)
    source = "{% for d in documents %}{{ d.title }}: {{ d.text }}\n{% endfor %}"
    documents = [{"title": "a", "text": "b"}]
    assert ChatTemplate(source).render([], documents=documents) == "a: b\n"
    assert ChatTemplate(source).render([], documents=documents) == expected(
        source, [], documents=documents
    )


@pytest.mark.model
@pytest.mark.parity
def test_smollm2_equals_transformers(tmp_path):
    from transformers import AutoTokenizer

    metadata = read_gguf(find_model("smollm2")[1]).metadata
    template = ChatTemplate.from_gguf(metadata)
    tokenizer = Tokenizer.from_gguf(metadata)
    tokenizer.save(tmp_path)
    template.save(tmp_path)
    reference = AutoTokenizer.from_pretrained(str(tmp_path))
    again = ChatTemplate.from_directory(tmp_path)
    for messages in (TALK, [SYSTEM, *TALK], TALK[:1]):
        for prompt in (True, False):
            text = reference.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt
            )
            assert template.render(messages, add_generation_prompt=prompt) == text
            assert again.render(messages, add_generation_prompt=prompt) == text
            ids = reference.apply_chat_template(
                messages, add_generation_prompt=prompt, return_dict=False
            )
            assert tokenizer.encode(text, add_special=False) == ids


def test_generation_prompt_of_chatml():
    got = ChatTemplate(CHATML).render([{"role": "user", "content": "hi"}])
    assert got.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


def test_clock_can_be_set():
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", clock=lambda: datetime(2024, 7, 26))
    assert template.render([]) == "26 Jul 2024"


def test_absent_special_tokens_are_undefined():
    assert ChatTemplate("{{ bos_token is defined }}").render([]) == "False"
    assert ChatTemplate("{{ bos_token }}", bos_token="<s>").render([]) == "<s>"


@pytest.mark.parametrize(
    ("source", "messages", "match"),
    [
        (GEMMA, [SYSTEM, *TALK], "System role not supported"),
        (LLAMA2, TALK[1:], "roles must alternate"),
        ("{{ raise_exception('no ' ~ messages|length) }}", [], "refuses the conversation: no 0"),
        ("{{ messages[0].content.x.y }}", TALK, "no attribute 'x'"),
        ("{{ 1 / 0 }}", [], "ZeroDivisionError"),
        ("{{ messages | tojson(sort_keys=3 + 'x') }}", [], "TypeError"),
        ("{{ missing | tojson }}", [], "TypeError"),
        ("{% include 'x' %}", [], "no loader"),
    ],
)
def test_a_template_that_fails_is_a_usage_error(source, messages, match):
    with pytest.raises(UsageError, match=match):
        ChatTemplate(source).render(messages)


@pytest.mark.parametrize("source", ["{{", "{% for %}", "{% nope %}", "{{ x | nope }}", "{% if %}"])
def test_a_template_that_is_no_jinja_is_a_file_error(source):
    with pytest.raises(ModelFileError, match=r"not valid Jinja.*line 1"):
        ChatTemplate(source).render([])


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([{"content": "x"}], "message 0"),
        ([{"role": "user", "content": ""}, {"role": 3}], "message 1"),
        (["x"], "message 0 is 'x'"),
        ([{"role": "user", "content": object()}], "is a object"),
        ([{"role": "user", "content": b"x"}], "is a bytes"),
        ([{"role": "user", "content": {1, 2}}], "is a set"),
    ],
)
def test_messages_must_be_plain(messages, match):
    with pytest.raises(UsageError, match=match):
        ChatTemplate(CHATML).render(messages)


def test_deep_nesting_is_refused():
    value = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(UsageError, match="nested over 64"):
        ChatTemplate("").render([{"role": "user", "content": value}])


@pytest.mark.parametrize(
    "name",
    ["messages_", "chat_template", "tokenize", "raise_exception", "namespace", "bos_token", "self"],
)
def test_extra_values_come_from_a_list_of_names(name):
    template = ChatTemplate("x")
    if name == "self":
        with pytest.raises(TypeError):
            template.render([], **{name: 1})
        return
    with pytest.raises(UsageError, match=f"cannot be given {name}; allowed: .*enable_thinking"):
        template.render([], **{name: 1})


def test_no_allowed_name_is_one_of_the_environment():
    environment = {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"}
    builtin = {"range", "dict", "namespace", "cycler", "joiner", "raise_exception", "strftime_now"}
    assert not ChatTemplate.ALLOWED & (environment | builtin)


ESCAPES = [
    # CVE-2024-34359 (llama-cpp-python) and its relatives.
    (
        "{% for x in ().__class__.__base__.__subclasses__() %}{% if 'warning' in x.__name__ %}"
        "{{ x()._module.__builtins__['__import__']('os').popen('id').read() }}"
        "{% endif %}{% endfor %}"
    ),
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ self.__init__.__globals__.__builtins__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ dict.__call__.__globals__ }}",
    "{{ strftime_now.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__closure__[0].cell_contents }}",
    "{{ messages.__class__ }}",
    "{{ messages[0]['content'].__class__ }}",
    "{{ messages[0].__getattribute__('x') }}",
    "{{ ''['__class__'].x }}",
    "{{ (''|attr('__class__')).x }}",
    "{{ '{0.__class__.__mro__}'.format(1) }}",
    "{{ '{a.__class__.__mro__}'.format_map({'a': 1}) }}",
    "{{ ['{0.__class__.__mro__}'] | map('format', 1) | list }}{{ ().__class__.__mro__ }}",
    "{% set f = '{0.__class__.__mro__}'.format %}{{ f(1) }}",
    "{{ messages | map(attribute='__class__') | map(attribute='__mro__') | list }}",
    "{% macro m() %}{% endmacro %}{{ m.__class__.__init__.__globals__ }}",
    "{{ loop.__class__ }}{% for x in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% set ns = namespace(__class__=1) %}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages.clear() }}",
    "{{ 'x'.encode().decode() }}",
    "{{ (1).real.to_bytes(3, 'big') }}",
    "{{ ''.translate.__self__ }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_escapes_are_refused(source):
    messages = [{"role": "user", "content": "x"}]
    try:
        got = ChatTemplate(source).render(messages)
    except HastenError:
        assert messages == [{"role": "user", "content": "x"}]
        return
    # Where Jinja makes the attribute undefined instead, nothing of it may show.
    assert not any(word in got for word in ("<class", "<module", "uid=", "built-in"))


BIG = "{% set ns = namespace(s='ab', l=[1]) %}{% for i in range(60) %}"
LABOUR = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}"
    "{% endfor %}{% endfor %}",
    "loops that write": "{% for a in range(99999) %}{% for b in range(99999) %}x"
    "{% endfor %}{% endfor %}",
    "a long text in a loop": "{% for i in range(99999) %}" + "x" * 500 + "{% endfor %}",
    "a text caught in a loop": "{% set x %}{% for i in range(99999) %}"
    + "x" * 500
    + "{% endfor %}{% endset %}",
    "recursion that doubles": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "recursion without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "blocks in themselves": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "loops in themselves": "{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "joining": BIG + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "joining wide": "{% set s = 'x' * 1000000 %}{{ (" + " ~ ".join(["s"] * 50) + ")|length }}",
    "adding": BIG + "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "adding lists": BIG + "{% set ns.l = ns.l + ns.l %}{% endfor %}",
    "nesting lists": BIG + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
    "nested lists to JSON": BIG + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | tojson }}",
    "nested lists in capitals": BIG + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | upper }}",
    "catching": BIG + "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
    "replacing": BIG + "{% set ns.s = ns.s.replace('a', ns.s) %}{% endfor %}",
    "the filter replace": BIG + "{% set ns.s = ns.s | replace('a', ns.s) %}{% endfor %}",
    "str.join": BIG + "{% set ns.s = ns.s.join(ns.s) %}{% endfor %}",
    "the filter join": BIG + "{% set ns.s = [ns.s, ns.s] | join(ns.s) %}{% endfor %}",
    "join of an attribute": "{% set d = {'a': 'x' * 1000000} %}"
    "{{ ([d] * 10000) | join(attribute='a') }}",
    "str.format": BIG + "{% set ns.s = '{0}{0}{0}'.format(ns.s) %}{% endfor %}",
    "percent": BIG + "{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}",
    "the filter format": BIG + "{% set ns.s = '%s%s' | format(ns.s, ns.s) %}{% endfor %}",
    "indenting": "{% set s = 'x\n' * 100000 %}{{ s | indent('y' * 100000) }}",
    "wrapping": "{{ ('x ' * 100000) | wordwrap(1, wrapstring='y' * 100000) }}",
    "repeating": "{{ 'a' * 1000000000 }}",
    "repeating from the left": "{{ 1000000000 * 'a' }}",
    "repeating lists": "{{ ([1] * 1000000000) | length }}",
    "padding": "{{ 'a'.ljust(1000000000) }}",
    "zeros": "{{ 'a'.zfill(1000000000) }}",
    "tabs": "{{ '\t'.expandtabs(1000000000) }}",
    "centring": "{{ 'a' | center(1000000000) }}",
    "wide numbers": "{{ '%1000000000d' % 1 }}",
    "wide numbers by value": "{{ '%*d' % (1000000000, 1) }}",
    "wide fields": "{{ '{:1000000000}'.format(1) }}",
    "wide fields by value": "{{ '{:{}}'.format(1, 1000000000) }}",
    "wide fields of a map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "wide dates": "{{ strftime_now('%1000000000Y') }}",
    "deep JSON": "{{ [1] | tojson(indent=1000000000) }}",
    "powers": "{{ 9 ** (9 ** 9) }}",
    "squares": "{% set ns = namespace(n=9) %}{% for i in range(99) %}"
    "{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "rounding": "{{ 5 | round(-1000000000) }}",
    "slices": "{{ [1] | slice(1000000000) | list }}",
    "batches": "{{ [1] | batch(1000000000, 0) | list }}",
    "sums of lists": "{{ ([[1] * 1000] * 1000) | sum(start=[]) }}",
    "texts of the library": "{{ lipsum(100000) }}",
    "ranges": "{{ range(100000000) | list }}",
    "parentheses": "{{" + "(" * 50_000,
    "a long sum": "{{" + "a+" * 20_000 + "a}}",
}


@pytest.mark.parametrize("name", LABOUR)
def test_work_is_bounded(name):
    stopped = "must not|too much|stopped by a RecursionError|lipsum|Range too big"
    with pytest.raises(HastenError, match=stopped):
        ChatTemplate(LABOUR[name]).render([{"role": "user", "content": "x"}])


def test_time_is_bounded(monkeypatch):
    monkeypatch.setattr(chat, "_SECONDS", 0.05)
    source = "{% for a in range(99999) %}{% set z = range(99999)|select('none')|list %}{% endfor %}"
    with pytest.raises(UnsupportedModelError, match="too much time"):
        ChatTemplate(source).render([])


def test_a_template_that_may_hold_others_up_says_so(monkeypatch):
    quick = ChatTemplate("{{ messages[0].content }}")
    assert quick.busy  # it is compiled with the first text
    for _ in range(2):
        quick.render([{"role": "user", "content": "x"}])
        assert not quick.busy
    monkeypatch.setattr("hasten.models.chat._MOMENT", -1.0)
    assert quick.busy


def test_output_is_bounded():
    with pytest.raises(UnsupportedModelError, match="writes too much"):
        ChatTemplate("{% for i in range(30000) %}" + "x" * 60 + "{% endfor %}").render([])


def test_source_is_bounded():
    with pytest.raises(ModelFileError, match="300000 characters"):
        ChatTemplate("x" * 300_000)


def test_long_conversations_fit():
    source, _ = TEMPLATES["qwen"]
    messages = [{"role": ("user", "assistant")[i % 2], "content": "x" * 5000} for i in range(400)]
    assert len(ChatTemplate(source).render(messages)) > 2_000_000


def test_one_render_does_not_use_up_the_next():
    template = ChatTemplate("{% for i in range(50000) %}{% endfor %}ok")
    assert [template.render([]) for _ in range(5)] == ["ok"] * 5


def write(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")


def test_directory_without_a_template(tmp_path):
    assert ChatTemplate.from_directory(tmp_path) is None
    write(tmp_path / "tokenizer_config.json", {"bos_token": "<s>"})
    assert ChatTemplate.from_directory(tmp_path) is None


def test_directory_with_a_template_in_the_configuration(tmp_path):
    config = {"chat_template": "{{ bos_token }}{{ pad_token }}!", "bos_token": {"content": "<s>"}}
    write(tmp_path / "tokenizer_config.json", config)
    write(tmp_path / "special_tokens_map.json", {"pad_token": "<pad>"})
    assert ChatTemplate.from_directory(tmp_path).render([]) == "<s><pad>!"


def test_directory_with_named_templates(tmp_path):
    named = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "{{ tools | length }} tools"},
        {"name": "rag", "template": "rag"},
    ]
    write(tmp_path / "tokenizer_config.json", {"chat_template": named})
    template = ChatTemplate.from_directory(tmp_path)
    assert template.render([]) == "plain"
    assert template.render([], tools=TOOLS) == "1 tools"


def test_template_files_come_first_and_are_saved(tmp_path):
    write(tmp_path / "tokenizer_config.json", {"chat_template": "old", "eos_token": "</s>"})
    ChatTemplate("a\r\nb{{ eos_token }}", tool_source="tools").save(tmp_path)
    template = ChatTemplate.from_directory(tmp_path)
    assert template.render([]) == "a\nb</s>"
    assert template.render([], tools=TOOLS) == "tools"


@pytest.mark.parametrize(
    "value", [3, [3], [{"name": "x"}], [{"name": "rag", "template": "x"}], [{"name": "default"}]]
)
def test_broken_configurations_are_refused(tmp_path, value):
    write(tmp_path / "tokenizer_config.json", {"chat_template": value})
    with pytest.raises(ModelFileError):
        ChatTemplate.from_directory(tmp_path)


def test_template_file_must_be_text(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelFileError, match="cannot be read"):
        ChatTemplate.from_directory(tmp_path)


def test_gguf_templates():
    metadata = byte_level_metadata(tiny_byte_level(), "gpt-2")
    assert ChatTemplate.from_gguf(metadata) is None
    metadata["tokenizer.chat_template"] = "{{ bos_token }}{{ eos_token }}"
    metadata["tokenizer.chat_template.tool_use"] = "tools"
    template = ChatTemplate.from_gguf(metadata)
    assert template.render([]) == "<|im_start|><|im_end|>"
    assert template.render([], tools=TOOLS) == "tools"
    with pytest.raises(ModelFileError, match="not a text"):
        ChatTemplate.from_gguf(metadata | {"tokenizer.chat_template": 3})
    with pytest.raises(ModelFileError, match="bos_token_id"):
        ChatTemplate.from_gguf(metadata | {"tokenizer.ggml.bos_token_id": 10**7})
