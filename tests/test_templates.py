"""Templates: which one asks for captions. What each writes is in test_conversation.py."""

from minillava.inputs.templates import TEMPLATES


def test_captions_are_asked_for_in_the_papers_form_or_shown_without_words():
    asked = {name: template.for_captions for name, template in TEMPLATES.items()}
    assert asked == {name: "brief" if name in ("v0", "brief") else "plain" for name in TEMPLATES}
