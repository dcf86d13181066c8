"""The attention weights shown in the lessons equal those of transformers."""

import torch
from transformers import LlavaForConditionalGeneration

from lessons.looking import attention_weights
from minillava import save


def test_attention_weights_are_transformers(tiny_model, tmp_path):
    save(tiny_model, tmp_path / "model")
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    ids = torch.randint(300, (1, 15))
    with torch.no_grad():
        expected = theirs.model.language_model(input_ids=ids, output_attentions=True).attentions
        ours = attention_weights(tiny_model.language_model, tiny_model.embed(ids))
    torch.testing.assert_close(ours, torch.cat(expected), rtol=1e-4, atol=1e-6)
