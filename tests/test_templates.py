"""Templates: recognising a checkpoint's chat template, and the templates in which stage 1 asks for captions."""

from minillava.inputs.templates import TEMPLATES, chat_template, recognise


def test_template_of_a_checkpoint_is_recognised():
    assert all(recognise(chat_template(template)) is template for template in TEMPLATES.values())
    turns = "{% for message in messages %}"
    for text, name in (
        ("{{ message['role'].upper() + ': ' }}{{ '<image>\\n' }}{{ 'ASSISTANT:' }}", "v1"),
        ("{{ '<<SYS>>\\n' + system + '\\n<</SYS>>' }}{{ bos_token + '[INST] ' + content + ' [/INST]' }}", "llama-2"),
        ("{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}{{ '<|eot_id|>' }}", "llama-3"),
        ("{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}", "chatml"),
        ("{{ bos_token + '[INST] ' + content + ' [/INST]' }}", None),  # Mistral's: no system message
        ("{{ '<start_of_turn>' + role }}", None),
        ("", None),
    ):
        assert recognise(turns + text) is (TEMPLATES[name] if name else None)


def test_captions_are_asked_for_in_the_papers_form_or_shown_without_words():
    asked = {name: template.for_captions for name, template in TEMPLATES.items()}
    assert asked == {name: "brief" if name in ("v0", "brief") else "plain" for name in TEMPLATES}
