"""Small models learn one batch by heart: gradients reach what must learn, through all parts."""

import torch
from test_contrastive import clip, small_batch  # noqa: F401  clip is a fixture

from minillava.inputs.conversation import encode_conversation
from minillava.inputs.conversations import pad_rows
from minillava.model.contrastive import clip_loss

PATCHES = 9


def test_a_small_batch_is_learned_by_heart(clip):  # noqa: F811
    batch = small_batch()
    optimizer = torch.optim.AdamW(clip.parameters(), 3e-3)

    def found() -> float:
        with torch.no_grad():
            pictures, regions = clip.image_features(batch["pixel_values"], batch["region_owner"], batch["region_patch"])
            captions, phrases = (clip.text_features(batch[name]) for name in ("captions", "phrases"))
            by_caption = (pictures @ captions.T).argmax(dim=1) == batch["caption_match"]
            by_phrase = (regions @ phrases.T).argmax(dim=1) == batch["phrase_match"]
            return torch.cat([by_caption, by_phrase]).float().mean().item()

    assert found() < 0.5
    for _ in range(40):
        optimizer.zero_grad()
        clip_loss(clip, batch).backward()
        optimizer.step()
    assert found() == 1.0, "40 steps of training match every picture and region of one batch with its text"


def test_one_batch_is_memorised_and_the_answers_depend_on_the_pictures(tiny_model):
    model, tokenizer = tiny_model.train(), tiny_model.processor.tokenizer
    question = {"from": "human", "value": "<image>\nWhat is it?"}
    answers = ["The small red fish is at the top.", "It is a blue boat."]
    rows = [
        encode_conversation([question, {"from": "gpt", "value": answer}], tokenizer, num_image_tokens=PATCHES)
        for answer in answers
    ]
    pictures = torch.randn(2, 3, 24, 24)
    optimizer, losses = torch.optim.AdamW(model.parameters(), 5e-3), []
    for _ in range(80):
        optimizer.zero_grad()
        losses.append(model(pixel_values=pictures, **pad_rows(rows, tokenizer.pad_id))[1])
        losses[-1].backward()
        optimizer.step()
    assert losses[0] > 2 and losses[-1] < 0.02

    ids, _ = encode_conversation([question], tokenizer, num_image_tokens=PATCHES)
    stop = tokenizer.encode("###")
    out = model.eval().generate(torch.tensor([ids, ids]), pictures, max_new_tokens=40, stop_ids=stop)
    for row, answer in zip(out.tolist(), answers):
        assert tokenizer.decode(row[: row.index(stop[0])]) == f" {answer}"
