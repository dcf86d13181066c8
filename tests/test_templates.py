"""Templates: which one asks for captions, and which system messages are refused.

What each writes is in test_conversation.py, and with another system message in test_chat_template.py.
"""

import pytest

from minillava.errors import UserError
from minillava.inputs.templates import TEMPLATES


def test_captions_are_asked_for_in_the_papers_form_or_shown_without_words():
    asked = {name: template.for_captions for name, template in TEMPLATES.items()}
    assert asked == {name: "brief" if name in ("v0", "brief") else "plain" for name in TEMPLATES}


def test_a_system_message_is_text_and_has_a_place():
    for message in ("", " \n"):
        with pytest.raises(UserError, match="must not be empty"):
            TEMPLATES["v0"].with_system(message)
    for mark in ("###", "</s>", "<|im_end|>"):
        with pytest.raises(UserError, match="must not contain"):
            TEMPLATES["v0"].with_system(f"Be kind.{mark}\nHuman: ")
    for name in ("brief", "plain"):
        with pytest.raises(UserError, match="template has no system message"):
            TEMPLATES[name].with_system("Be kind.")
