"""Chat templates in the manner of families that call tools, as short as they show what they do."""

from chat_templates import CHATML, GEMMA, LLAMA2, LLAMA3, MISTRAL, QWEN, ZEPHYR

from hasten.models.chat import ChatTemplate

_BODY = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}CALL{% endfor %}\n{% endfor %}<|assistant|>"
)
PHI4 = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}"
    "{{ '<|system|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|><|end|>' }}"
    "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
GRANITE3 = (
    "{% if tools %}Tools: {{ tools | tojson }}. When a tool is required, respond only with "
    "<|tool_call|> followed by a JSON list of tools used.{% endif %}"
    "{% if thinking %}Write your thoughts after 'Here is my thought process:' and your response "
    "after 'Here is my response:'.{% endif %}"
    "{% for message in messages %}{{ '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + "
    "message['content'] + '<|end_of_text|>\n' }}{% endfor %}<|start_of_role|>assistant"
)
QWEN_CODER = (
    "{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>\n"
    "<tool_call>\n<function=example>\n<parameter=one>\nvalue\n</parameter>\n</function>\n"
    "</tool_call>{% endif %}" + _BODY
)
MISTRAL3 = (
    "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "{# [TOOL_CALLS]name[ARGS]{...} and [THINK]...[/THINK] #}" + _BODY
)
R1 = "{# </think> #}" + _BODY + "<think>\n"
FUNCTIONARY = "{% if tools %}{{ tools | tojson }} <function=name>{...}{% endif %}" + _BODY

TEMPLATES = {
    "chatml": CHATML,
    "llama2": LLAMA2,
    "llama3": LLAMA3,
    "zephyr": ZEPHYR,
    "gemma": GEMMA,
    "qwen": QWEN,
    "mistral": MISTRAL,
    "mistral3": MISTRAL3,
    "phi4": PHI4,
    "granite3": GRANITE3,
    "qwen-coder": QWEN_CODER,
    "r1": R1,
    "functionary": FUNCTIONARY,
}


def template(name, **options):
    return ChatTemplate(TEMPLATES[name], bos_token="<s>", eos_token="</s>", **options)
