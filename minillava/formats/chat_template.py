"""Chat templates in jinja, as checkpoints store them <-> the texts around questions and answers.

Nothing is rendered here: a template is recognised by its text. A ``style`` is the dict of a Template's fields
(``minillava/inputs/templates.py``), and ``styles`` are those of all families by name. What one checkpoint's template
changes in its family's style is the opening: its system message, or that it has none.
"""

import json
import re
from typing import NamedTuple

FILE = "chat_template.jinja"
IMAGE = "<image>"
BOS, EOS = "<s>", "</s>"  # what styles write where a template says bos_token and eos_token
HOLE = "SYSTEM_MESSAGE"  # a placeholder that matches any system message
LITERAL = r"((?:[^'{}<|\\]|\\[n'])+)"  # a text within '...' in jinja
# The families whose templates may have a system message of their own, and what a conversation then begins with.
BEGINS = {"chatml": "", "llama-3": "<|begin_of_text|>"}
# Strings that every chat template of a family contains. v0, brief and plain need none: only this package writes
# them, and recognise() finds their exact text.
SIGNS = {
    "v1": ("ASSISTANT:",),
    "llama-2": ("[INST]", "<<SYS>>"),
    "llama-3": ("<|start_header_id|>", "<|eot_id|>"),
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "zephyr": (r"'<|user|>\n' + message['content'] + eos_token", "<|assistant|>"),
}
# Templates known word for word, and their families.
KNOWN = (
    (  # SmolLM2, Qwen 2: a system message of their own if none is given
        "chatml",
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        f"{{{{ '<|im_start|>system\n{HOLE}<|im_end|>\n' }}}}{{% endif %}}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    ),
    (  # ChatML as such: SmolLM, OpenHermes, and what trl gives a model
        "chatml",
        "{% for message in messages %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    ),
    (  # Zephyr, TinyLlama-1.1B-Chat
        "zephyr",
        "{% for message in messages %}\n"
        "{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
        "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    ),
    (  # Llama-2-chat
        "llama-2",
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}{% else %}"
        "{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    ),
    *(  # Llama-3-Instruct, later and as first published
        (
            "llama-3",
            "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
            "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + "
            "'<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
            f"{{% endfor %}}{before}{{{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}}}{after}",
        )
        for before, after in (("{% if add_generation_prompt %}", "{% endif %}"), ("", ""))
    ),
    (  # llava-hf's LLaVA-1.5. It writes a space where the model was trained on "</s>"; we write what it was trained on
        "v1",
        "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}"
        "{% endif %}{# Render all images first #}{% for content in message['content'] | "
        "selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}{# Render all text next #}"
        "{% if message['role'] != 'assistant' %}{% for content in message['content'] | "
        "selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}{% else %}"
        "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
        "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    ),
)


class Found(NamedTuple):
    """What ``recognise`` found. exact: the template is known word for word; else only its family is known."""

    family: str
    style: dict
    exact: bool


def to_jinja(style: dict) -> str:
    """``style`` as a jinja template, which transformers reads from ``chat_template.jinja``.

    A message's content is a string or a list of parts of type "text" and "image"; pictures are written before the text.
    """

    def say(*names: str) -> str:
        text = "".join(style[name] for name in names)
        return "{{ " + json.dumps(text) + " }}" if text else ""

    words = "{% for part in parts if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    picture = "{{ " + json.dumps(IMAGE if style["picture_only"] else f"{IMAGE}\n") + " }}"
    asked = "" if style["picture_only"] else words
    after = say("after_answer", "stop", "after_stop")
    return (
        "{% for message in messages %}"
        "{% if message['role'] != ['user', 'assistant'][loop.index0 % 2] %}"
        "{{ raise_exception('the roles must be user, assistant, user, and so on') }}{% endif %}"
        "{% set content = message['content'] %}"
        "{% set parts = [{'type': 'text', 'text': content}] if content is string else content %}"
        "{% if message['role'] == 'user' %}"
        f"{{% if loop.first %}}{say('opening')}{{% else %}}{say('human')}{{% endif %}}"
        f"{{% for part in parts if part['type'] == 'image' %}}{picture}{{% endfor %}}"
        f"{asked}{say('after_question')}{{% else %}}"
        f"{say('assistant', 'before_answer')}{words}{after}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{say('assistant')}{{% endif %}}"
    )


def recognise(text: str, styles: dict[str, dict], bos: str | None = BOS, eos: str | None = EOS) -> Found | None:
    """The style of a checkpoint's chat template, or of the family that it belongs to; None if it is unknown.

    ``bos``, ``eos``: the names of the tokenizer's tokens, which templates write as bos_token and eos_token.
    """
    named = {family: _rename(style, bos or BOS, eos or EOS) for family, style in styles.items()}
    for family, style in [*styles.items(), *named.items()]:
        if (opening := _read_opening(text, style)) is not None:
            return Found(family, {**style, "opening": opening}, exact=True)
    text = _plain(text)
    for family, known in KNOWN:
        if match := re.fullmatch(re.escape(_plain(known)).replace(HOLE, LITERAL), text):
            style = named[family] if "eos_token" in known else styles[family]
            system = match[1] if HOLE in known else None
            return Found(family, {**style, "opening": _opening(family, style, system)}, exact=True)
    for family, signs in SIGNS.items():
        if all(sign in text for sign in signs):
            style = named[family] if "eos_token" in text else styles[family]
            opening = _opening(family, style, _system(text, family, style)) if family in BEGINS else style["opening"]
            return Found(family, {**style, "opening": opening}, exact=False)
    return None


def _rename(style: dict, bos: str, eos: str) -> dict:
    return {name: v.replace(EOS, eos).replace(BOS, bos) if isinstance(v, str) else v for name, v in style.items()}


def _plain(text: str) -> str:
    """The text with each newline as "\\n": within quotes both mean the same, and files have either."""
    return text.rstrip("\n").replace("\n", r"\n")


def _read_opening(text: str, style: dict) -> str | None:
    """The opening in a template that ``to_jinja`` made of ``style`` with any opening; None if it is not one."""
    pattern = re.escape(to_jinja({**style, "opening": HOLE})).replace(
        re.escape(f'{{{{ "{HOLE}" }}}}'), r'(?:\{\{ ("(?:[^"\\]|\\.)*") \}\})?'
    )
    if not (match := re.fullmatch(pattern, text.rstrip("\n"))):
        return None
    try:
        return json.loads(match[1]) if match[1] else ""
    except ValueError:
        return None


def _opening(family: str, style: dict, system: str | None) -> str:
    """What comes before the first question: the system message, if any, as it is written in jinja's quotes."""
    message = (system or "").replace(r"\n", "\n").replace(r"\'", "'")
    return style["frame"].replace(HOLE, message) if message else BEGINS.get(family, "") + style["human"]


def _system(text: str, family: str, style: dict) -> str | None:
    """The system message that a template of ``family`` writes if none is given; None if it writes none."""
    dated = re.search(r'set date_string = "([\w ]+)"', text)
    if dated and "Cutting Knowledge Date: December 2023" in text:  # Llama 3.1 and 3.2
        return rf"Cutting Knowledge Date: December 2023\nToday Date: {dated[1]}\n\n"
    written = style["frame"].removeprefix(BEGINS[family]).removesuffix(style["human"])
    found = set(re.findall(re.escape(_plain(written)).replace(HOLE, LITERAL), text))
    return found.pop() if len(found) == 1 else None
