"""Makes crates/data/tests/goldens/chat.json: what transformers renders with real chat templates.

Usage: python scripts/goldens_chat.py SHARED_DIR

Renders every conversation below with every *.jinja file of SHARED_DIR/data, and with those named
in FETCHED, which `cargo xtask models templates` fetches, by the function behind
apply_chat_template, at a fixed date, and keeps the SHA-256 and the length of each rendering (the
templates keep their own licences, so their text is not copied), or the fact that it raises. The
tests in crates/data/tests/integration/chat_goldens.rs compare. Also, for templates of our own and
the small stories260k model: rendered text, token ids and assistant masks.
"""

import copy
import hashlib
import json
import pathlib
import re
import sys
from datetime import datetime, timezone

import transformers
from transformers.utils import chat_template_utils

NOW = 1_750_000_000  # 2025-06-15 15:06:40 UTC
ROOT = pathlib.Path(__file__).parent.parent
# As TRL ships them, unchanged, for Gemma 3, the small models of Qwen3.5, Qwen3.6 and Qwen3-2507,
# and Xinference for Qwen2, GLM-4, Mixtral 8x7B and 8x22B.
FETCHED = [
    "gemma3.jinja",
    "qwen3_5_nothink.jinja",
    "qwen3_6.jinja",
    "qwen3_instruct_2507.jinja",
    "xinference/codeqwen1.5-chat.jinja",
    "xinference/glm4-0414.jinja",
    "xinference/mixtral-8x22B-instruct-v0.1.jinja",
    "xinference/mixtral-instruct-v0.1.jinja",
]
SPECIAL_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather at a place <now> & later",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Name of the city, e.g. Zürich"},
                    "units": {"type": "string", "enum": ["C", "F"], "default": "C"},
                    "days": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "now",
            "description": "The time",
            "parameters": {"type": "object", "properties": {}, "required": []},
        },
    },
]


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(name, arguments, call_id="abcdefgh1"):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def tool(text, call_id="abcdefgh1", name="get_weather"):
    return {"role": "tool", "name": name, "tool_call_id": call_id, "content": text}


SYSTEM = {"role": "system", "content": "You are terse."}
CITY = {"city": "Zürich", "units": "C", "days": [1, 2]}
CONVERSATIONS = {
    "single": {"messages": [user("What is 2+2?"), assistant("It is 4.")]},
    "multi": {
        "messages": [
            user("Hello there"),
            assistant("Hi! How can I help?"),
            user("Name a colour"),
            assistant("Blue"),
            user("Another?"),
            assistant("Green, and\n\nalso red."),
        ]
    },
    "system": {"messages": [SYSTEM, user("Who are you?"), assistant("A bot.")]},
    "system_multi": {
        "messages": [SYSTEM, user("a"), assistant("b"), user("c"), assistant("d")]
    },
    "unicode": {
        "messages": [
            user("日本語で? 👩‍👩‍👧 <b>&amp;\"'"),
            assistant("はい、できます。🎉 é \"quoted\" <tag>"),
        ]
    },
    "spaces": {"messages": [user("  padded question \n"), assistant("\n padded answer  ")]},
    "thinking_last": {
        "messages": [user("Why?"), assistant("<think>\nLet me see.\n</think>\n\nBecause.")]
    },
    "thinking_history": {
        "messages": [
            user("Why?"),
            assistant("<think>\nLet me see.\n</think>\n\nBecause."),
            user("Really?"),
            assistant("<think>\nHm.\n</think>\n\nYes."),
        ]
    },
    "reasoning_field": {
        "messages": [user("Why?"), assistant("Because.", reasoning_content="Let me see.")]
    },
    "tools_unused": {"tools": TOOLS, "messages": [user("Hi"), assistant("Hello.")]},
    "tool_call": {
        "tools": TOOLS,
        "messages": [
            user("Weather in Zürich?"),
            assistant("", tool_calls=[call("get_weather", CITY)]),
            tool('{"temperature": 21.5}'),
            assistant("It is 21.5 °C."),
        ],
    },
    "tool_call_null_content": {
        "tools": TOOLS,
        "messages": [
            SYSTEM,
            user("Weather in Bern?"),
            assistant(None, tool_calls=[call("get_weather", {"city": "Bern"})]),
            tool("sunny"),
            assistant("Sunny."),
            user("Thanks"),
            assistant("Welcome."),
        ],
    },
    "tool_calls_parallel": {
        "tools": TOOLS,
        "messages": [
            user("Weather and time?"),
            assistant(
                "I look.",
                tool_calls=[
                    call("get_weather", {"city": "A\n\"B\"", "n": 1.5, "ok": True, "no": None}),
                    call("now", {}, "abcdefgh2"),
                ],
            ),
            tool("rain"),
            tool("noon", "abcdefgh2", "now"),
            assistant("Rain at noon."),
        ],
    },
    "assistant_first": {"messages": [assistant("Hello, I am here."), user("Hi"), assistant("So?")]},
    "two_users": {"messages": [user("a"), user("b"), assistant("c")]},
}

# Templates of our own with the generation tag, in the ways people place it.
GENERATION_TEMPLATES = [
    """{{ bos_token }}{% for m in messages %}
{% if m.role == 'assistant' %}
A: {% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}

{% else %}
{{ m.role }}: {{ m.content }}
{% endif %}
{% endfor %}
{%- if add_generation_prompt %}A: {% endif %}
""",
    """{%- for m in messages -%}
    {%- if m['role'] == 'assistant' -%}
        {{- '<|im_start|>assistant\n' -}}
        {%- generation -%}
            {{- m['content'] | trim -}}
            {%- if not loop.last %} {# {% generation %} #}{{- '<|im_end|>' -}}{% endif %}
        {%- endgeneration -%}
        {{- '\n' -}}
    {%- else -%}
        {{- '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' -}}
    {%- endif -%}
{%- endfor -%}
""",
    """{% macro turn(m) -%}
  {%- if m.role == "assistant" %}
    {%-generation-%}
      {% set text = m.content ~ "{% endgeneration %}" %}
      {{- text }}
    {% endgeneration -%}
  {% else %}[{{ m.content }}]{% endif -%}
{%- endmacro -%}
{% for m in messages %}{{ turn(m) }}
{% endfor %}{% raw %}{% generation %}{% endraw %}end
""",
]


class FixedDate(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.fromtimestamp(NOW, timezone.utc)


def render(source, conversation, add_generation_prompt):
    messages = [
        {k: v for k, v in message.items() if v is not None} for message in conversation["messages"]
    ]
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            conversations=[messages],
            tools=conversation.get("tools"),
            chat_template=source,
            add_generation_prompt=add_generation_prompt,
            **SPECIAL_TOKENS,
        )
    except Exception:  # a template may fail in any way
        return None
    return rendered[0]


def arguments_as_text(conversation):
    conversation = copy.deepcopy(conversation)
    for message in conversation["messages"]:
        for tool_call in message.get("tool_calls") or []:
            function = tool_call["function"]
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return conversation


def wants_text(source):
    """The rule of ChatTemplate::wants_arguments_as_text."""
    probe = {
        "messages": [
            user("probe"),
            assistant("", tool_calls=[call("probe", {"probe": "x"}, "probe00id")]),
            tool("x", "probe00id", "probe"),
            assistant("probe"),
        ]
    }
    as_object = render(source, probe, False)
    as_text = render(source, arguments_as_text(probe), False)
    object_fails = as_object is None or "{'probe'" in as_object
    return object_fails and as_text is not None and '{"probe"' in as_text


def generation_goldens():
    goldens = []
    for source in GENERATION_TEMPLATES:
        cases = {}
        for name in ("single", "multi", "system_multi", "unicode", "spaces", "assistant_first"):
            texts, spans = chat_template_utils.render_jinja_template(
                conversations=[CONVERSATIONS[name]["messages"]],
                chat_template=source,
                return_assistant_tokens_mask=True,
                **SPECIAL_TOKENS,
            )
            text = texts[0]
            offset = lambda i: len(text[:i].encode("utf-8"))
            cases[name] = {"text": text, "spans": [[offset(a), offset(b)] for a, b in spans[0]]}
        goldens.append({"template": source, "cases": cases})
    return goldens


def token_goldens(model_dir):
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    goldens = {}
    for name in ("single", "multi", "system_multi", "unicode", "spaces"):
        encoded = tokenizer.apply_chat_template(
            CONVERSATIONS[name]["messages"], return_dict=True, return_assistant_tokens_mask=True
        )
        mask = "".join(map(str, encoded["assistant_masks"]))
        goldens[name] = {"ids": " ".join(map(str, encoded["input_ids"])), "mask": mask}
    return goldens


def main():
    chat_template_utils.datetime = FixedDate
    templates = {}
    shared = pathlib.Path(sys.argv[1])
    data = shared / "data"
    paths = {str(path.relative_to(data)): path for path in sorted(data.rglob("*.jinja"))}
    paths |= {f"fetched/{name}": ROOT / "target/models/chat-templates" / name for name in FETCHED}
    for name_of_template, path in paths.items():
        source = path.read_text(encoding="utf-8")
        as_text = wants_text(source)
        results = {}
        for name, conversation in CONVERSATIONS.items():
            given = arguments_as_text(conversation) if as_text else conversation
            for suffix, prompt in (("", False), ("+prompt", True)):
                rendered = render(source, given, prompt)
                if rendered is None:
                    results[name + suffix] = "raises"
                else:
                    data = rendered.encode("utf-8")
                    results[name + suffix] = [len(data), hashlib.sha256(data).hexdigest()[:16]]
        templates[name_of_template] = results
    golden = {
        "made_with": f"transformers {transformers.__version__}",
        "now": NOW,
        "special_tokens": SPECIAL_TOKENS,
        "conversations": CONVERSATIONS,
        "templates": templates,
        "generation": generation_goldens(),
        "stories260k": token_goldens(shared / "models/stories260k"),
    }
    out = ROOT / "crates/data/tests/goldens/chat.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as file:
        text = json.dumps(golden, ensure_ascii=False, indent=1)
        # A digest on a line of its own keeps differences readable; its length need not be.
        text = re.sub(r"\[\s+(\d+),\s+(\S+)\s+\]", r"[\1, \2]", text)
        file.write(text + "\n")


if __name__ == "__main__":
    main()
