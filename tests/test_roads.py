"""The roads not taken: each against a plain reference, and trained for a few steps by the project's loop."""

import json

import pytest
import torch
from conftest import batch_of
from PIL import Image

from lessons.roads import blip2, flamingo, frozen, kosmos
from minillava.errors import UserError
from minillava.inputs.conversations import ConversationDataset
from minillava.model import fast
from minillava.model.attention import attend
from minillava.model.generation import collect
from minillava.model.llava import next_token_loss
from minillava.training.loop import Run, train
from minillava.training.recipes import Recipe

COLOURS = ("red", "blue", "green")
QFORMER = blip2.QFormerConfig(
    hidden_size=16,
    intermediate_size=28,
    num_hidden_layers=3,
    num_attention_heads=2,
    max_position_embeddings=40,
    projection_dim=12,
    num_queries=5,
    source_size=24,
)


@pytest.fixture
def qformer_config(tokenizer):
    return blip2.QFormerConfig(**{**vars(QFORMER), "vocab_size": tokenizer.vocab_size + 2})


@pytest.fixture
def captions(tmp_path):
    """A function from a processor to a dataset: six one-coloured pictures with captions, and a seventh row of text."""
    rows = []
    for index in range(6):
        colour = COLOURS[index % 3]
        Image.new("RGB", (24, 24), colour).save(tmp_path / f"{index}.png")
        said = f"The {('big', 'small')[index // 3]} {colour} fish is at the top."
        turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": said}]
        rows.append({"id": str(index), "image": f"{index}.png", "type": "caption", "conversations": turns})
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    turns = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "It is a boat."}]
    (tmp_path / "mixed.json").write_text(json.dumps([*rows, {"id": "6", "conversations": turns}]))
    return lambda processor, file="captions.json": ConversationDataset(tmp_path / file, tmp_path, processor)


def pictures(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 24, 24)


def prepared(name: str, llava, captions, qformer_config):
    """The task of a road on the captions. The road's name before a "/" is its file's."""
    if name == "blip2/first":
        return blip2.first_task(blip2.FirstTraining(llava.vision_tower, qformer_config), captions(llava.processor))
    if name == "blip2":
        model = blip2.Blip2(llava, blip2.QFormer(qformer_config))
        return blip2.blip2_task(model, captions(model.processor))
    if name == "frozen":
        model = frozen.Frozen(llava)
        return frozen.frozen_task(model, captions(model.processor))
    if name == "flamingo":
        model = flamingo.Flamingo(llava, count=4)
        return flamingo.flamingo_task(model, captions(model.processor))
    model = kosmos.Kosmos(llava, count=4)
    return kosmos.kosmos_task(model, kosmos.Documents(captions(model.processor, "mixed.json"), most=2))


# Frozen


def test_frozens_gradient_reaches_the_vit_and_no_weight_of_the_decoder(tiny_model, captions, qformer_config):
    task = prepared("frozen", tiny_model, captions, qformer_config)
    task.loss(batch_of(task.dataset, [0, 1, 2])).backward()
    for name, parameter in task.model.named_parameters():
        if name.startswith("language_model."):
            assert parameter.grad is None and not parameter.requires_grad
        else:
            assert parameter.grad.abs().max() > 0, name


def test_frozens_prefix_is_a_linear_map_of_the_mean_over_patches(tiny_model):
    model = frozen.Frozen(tiny_model, count=3)
    shown = pictures(2)
    tower, linear = model.vision_tower, model.multi_modal_projector.linear
    patches = tower.post_layernorm(tower.hidden_state(shown, 3)[:, 1:])  # (2, 9, 24): after the third and last block
    flat = patches.sum(dim=1) / 9 @ linear.weight.T + linear.bias  # (2, 3 * 32)
    prefix = model.encode_images(shown)
    for number in range(3):
        torch.testing.assert_close(prefix[:, number], flat[:, 32 * number : 32 * (number + 1)])


# Flamingo


def interleaved(tokenizer) -> torch.Tensor:
    """Three rows with 2, 0 and 1 pictures, each a single placeholder."""
    a, b, c, image = *tokenizer.encode("The fish is")[:3], tokenizer.image_id
    return torch.tensor([[a, image, b, b, image, c], [a, b, c, c, b, a], [c, b, image, a, b, c]])


def test_closed_gates_leave_the_decoders_logits_unchanged(tiny_model, tokenizer):
    model, ids = flamingo.Flamingo(tiny_model, count=4), interleaved(tokenizer)
    plain = tiny_model.language_model
    expected = plain.lm_head(plain(plain.embed_tokens(ids)))
    shown = pictures(3)
    torch.testing.assert_close(model(ids, shown)[0], expected, rtol=0, atol=0)
    for gate in ("attention_gate", "ffw_gate"):
        opened = getattr(model.language_model.layers[1], gate)
        opened.data.fill_(0.5)
        assert (model(ids, shown)[0] - expected).abs().max() > 1e-3
        opened.data.fill_(0.0)


def test_a_closed_gate_still_has_a_gradient(tiny_model, tokenizer):
    model, ids = flamingo.Flamingo(tiny_model, count=4), interleaved(tokenizer)
    model(ids, pictures(3), labels=ids)[1].backward()
    for layer in model.language_model.layers:
        assert layer.attention_gate.grad.abs() > 0 and layer.ffw_gate.grad.abs() > 0


def test_a_word_looks_at_the_latest_picture_before_it(tiny_model, tokenizer, randomise):
    model = randomise(flamingo.Flamingo(tiny_model, count=4))
    ids, shown = interleaved(tokenizer), pictures(3)
    x = model.embed(ids, shown)
    visual = model.encode_images(shown)  # (3, 4, 32)
    gated = model.language_model.layers[0]
    seen: list[torch.Tensor] = []
    gated.block.forward = lambda x, *_: seen.append(x) or x
    gated(x, None, None, None)
    latest = [[None, 0, 0, 0, 1, 1], [None] * 6, [None, None, 2, 2, 2, 2]]  # which of the three pictures
    for row in range(3):
        for place in range(6):
            y = x[row : row + 1, place : place + 1]
            if (picture := latest[row][place]) is not None:
                y = y + gated.attention_gate.tanh() * gated.attention(gated.norm(y), visual[picture : picture + 1])
            y = y + gated.ffw_gate.tanh() * gated.ffw(y)
            torch.testing.assert_close(seen[0][row, place], y[0, 0], rtol=1e-4, atol=1e-5)


def test_rows_without_pictures_and_a_wrong_number_of_pictures(tiny_model, tokenizer, randomise):
    model, ids = randomise(flamingo.Flamingo(tiny_model, count=4)), interleaved(tokenizer)
    together, _ = model(ids, pictures(3))
    torch.testing.assert_close(model(ids[1:2])[0], together[1:2], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="3 image placeholders for 2 pictures"):
        model(ids, pictures(2))


def test_every_other_block_may_be_gated(tiny_model):
    layers = flamingo.Flamingo(tiny_model, count=4, every=2).language_model.layers
    assert [isinstance(layer, flamingo.GatedBlock) for layer in layers] == [True, False]


def test_the_resampler_is_the_papers_pseudocode(randomise):
    """Figure 5: x = x + attention(q=x, kv=[x_f, x]); x = x + ffw(x). The ffw is linear, squared ReLU, linear."""
    resampler = randomise(flamingo.Resampler(8, 6, count=3, num_layers=2, heads=2))
    for patches in (1, 7):
        features = torch.randn(2, patches, 8)
        x = resampler.latents.expand(2, -1, -1)
        for layer in resampler.layers:
            q = layer.norm_latents(x)
            kv = torch.cat([layer.norm_features(features), q], dim=1)
            a = layer.attention
            parts = [
                w(y).unflatten(-1, (2, 4)).transpose(1, 2) for w, y in zip((a.q_proj, a.k_proj, a.v_proj), (q, kv, kv))
            ]
            x = x + a.out_proj(attend(*parts).transpose(1, 2).flatten(2))
            x = x + layer.ffw.fc2(layer.ffw.fc1(layer.ffw.norm(x)).clamp(min=0) ** 2)
        out = resampler(features)
        assert out.shape == (2, 3, 6)
        torch.testing.assert_close(out, resampler.out(resampler.norm(x)))


# BLIP-2


def test_the_three_masks():
    """Rows look at columns: two queries, then three tokens, of which the last is padding."""
    text = torch.tensor([[True, True, False]])
    drawn = {
        "contrast": ("11 000", "11 000", "00 110", "00 110", "00 110"),
        "matching": ("11 110", "11 110", "11 110", "11 110", "11 110"),
        "captioning": ("11 000", "11 000", "11 100", "11 110", "11 110"),
    }
    for kind, rows in drawn.items():
        expected = torch.tensor([[int(c) for c in row.replace(" ", "")] for row in rows])
        assert torch.equal((blip2.attention_mask(kind, 2, text) == 0).long(), expected[None, None]), kind


@pytest.mark.parametrize("kind", blip2.MASKS)
def test_queries_and_text_see_what_the_mask_says(kind, qformer_config, tiny_model, randomise):
    """By what changes when a token, the picture, or a token of padding does."""
    model = randomise(blip2.FirstTraining(tiny_model.vision_tower, qformer_config))
    features, ids = torch.randn(1, 9, 24), torch.tensor([[5, 6, 7, 8, blip2.IGNORE]])

    def changes(features: torch.Tensor, ids: torch.Tensor) -> tuple[bool, list[bool]]:
        """Whether any query changes, and whether each token does: [CLS] or [DEC], then the four words."""
        (query, text), (old_query, old_text) = model.read(kind, features, ids), first
        far = (text - old_text)[0].abs().amax(dim=-1) > 1e-4
        return ((query - old_query).abs().max() > 1e-4).item(), far[:5].tolist()

    first = model.read(kind, features, ids)
    begin = qformer_config.vocab_size - (1 if kind == "captioning" else 2)  # [DEC] or [CLS]
    mask = blip2.attention_mask(kind, 5, torch.tensor([[True] * 5]))
    expected = model.qformer(features, torch.tensor([[begin, 5, 6, 7, 8]]), mask)
    torch.testing.assert_close(first[0], expected[0])
    torch.testing.assert_close(first[1][:, :5], expected[1])
    word = changes(features, torch.tensor([[5, 6, 9, 8, blip2.IGNORE]]))
    look = changes(features.flip(2), ids)
    assert (
        word
        == {
            "contrast": (False, [True] * 5),
            "matching": (True, [True] * 5),
            "captioning": (False, [False, False, False, True, True]),
        }[kind]
    )
    assert look == (True, [kind != "contrast"] * 5)
    longer = model.read(kind, features, torch.cat([ids, ids[:, -1:]], dim=1))
    torch.testing.assert_close(longer[0], first[0])
    torch.testing.assert_close(longer[1][:, :5], first[1][:, :5])


def theirs(config: blip2.QFormerConfig, ours: blip2.QFormer):
    """transformers' Q-Former with the weights of ours."""
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    model = Blip2QFormerModel(
        Blip2QFormerConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_position_embeddings,
            cross_attention_frequency=config.cross_every,
            encoder_hidden_size=config.source_size,
            use_qformer_text_input=True,
        )
    ).eval()
    parts = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
    names = {f"self_attn.{our}": f"attention.{their}" for our, their in parts.items()}
    names |= {f"cross_attn.{our}": f"crossattention.{their}" for our, their in parts.items()}
    names |= {"self_attn.out_proj": "attention.output.dense", "norm": "attention.output.LayerNorm"}
    names |= {"cross_attn.out_proj": "crossattention.output.dense", "cross_norm": "crossattention.output.LayerNorm"}
    names |= {"query_mlp.fc1": "intermediate_query.dense", "query_mlp.fc2": "output_query.dense"}
    names |= {"text_mlp.fc1": "intermediate.dense", "text_mlp.fc2": "output.dense"}
    names |= {"query_norm": "output_query.LayerNorm", "text_norm": "output.LayerNorm"}
    tensors = {}
    for name, value in ours.state_dict().items():
        if name.startswith("layers."):
            _, index, part = name.split(".", 2)
            part, end = part.rsplit(".", 1)
            tensors[f"encoder.layer.{index}.{names[part]}.{end}"] = value
        elif name.startswith("norm."):
            tensors[f"layernorm.{name.removeprefix('norm.')}"] = value
    model.load_state_dict(tensors)
    return model


@pytest.mark.parametrize("kind", ["none", *blip2.MASKS])
def test_the_qformer_equals_that_of_transformers(kind, qformer_config, randomise):
    ours = randomise(blip2.QFormer(qformer_config))
    model, features = theirs(qformer_config, ours), torch.randn(2, 9, 24)
    embeddings, ids, mask = ours.queries.expand(2, -1, -1), None, None
    if kind != "none":
        ids = torch.tensor([[5, 6, 7, 8], [9, 5, 0, 0]])
        mask = blip2.attention_mask(kind, 5, torch.tensor([[True] * 4, [True, True, False, False]]))
        words = ours.text_embeddings.token_embedding(ids) + ours.text_embeddings.position_embedding.weight[:4]
        embeddings = torch.cat([embeddings, words], dim=1)
    with torch.no_grad():
        query, text = ours(features, ids, mask)
        expected = model(embeddings, query_length=5, attention_mask=mask, encoder_hidden_states=features)
    together = torch.cat([query, text], dim=1)
    assert together.std() > 0.5
    torch.testing.assert_close(together, expected.last_hidden_state, rtol=0, atol=1e-4)


def test_the_three_losses_against_loops(qformer_config, tiny_model, randomise):
    """Two of the four captions are equal, so each of them is right for both pictures."""
    model = randomise(blip2.FirstTraining(tiny_model.vision_tower, qformer_config))
    shown, no = pictures(4), blip2.IGNORE
    ids = torch.tensor([[5, 6, 7], [8, 9, no], [5, 6, 7], [9, no, no]])
    with torch.no_grad():
        losses = model.losses(shown, ids)
        features = model.vision_tower(shown, -2)
        query, text = model.read("contrast", features, ids)
        similar = torch.zeros(4, 4)
        for i in range(4):
            for j in range(4):
                word = model.text_projection(text[j, 0])
                each = [torch.cosine_similarity(model.query_projection(one), word, dim=0) for one in query[i]]
                similar[i, j] = max(each) * model.scale.exp()
        right = [[0, 2], [1], [0, 2], [3]]
        both = 0.0
        for scores in (similar, similar.T):
            logs = scores.log_softmax(dim=1)
            both += -sum(sum(logs[i, j] for j in right[i]) / len(right[i]) for i in range(4)) / 8
        torch.testing.assert_close(losses["contrast"], both)

        total, count = 0.0, 0
        for row in range(4):
            caption = ids[row][ids[row] != no]
            for place, target in enumerate(caption):
                _, out = model.read("captioning", features[row : row + 1], caption[None, :place])
                total, count = total - model.word(out[0, -1]).log_softmax(dim=0)[target], count + 1
        torch.testing.assert_close(losses["captioning"], total / count)


def test_matching_shows_wrong_captions_and_wrong_pictures(qformer_config, tiny_model, randomise, monkeypatch):
    model = randomise(blip2.FirstTraining(tiny_model.vision_tower, qformer_config))
    shown, ids = pictures(3), torch.tensor([[5, 6], [5, 6], [7, 8]])
    features, read, asked = model.vision_tower(shown, -2), model.read, {}

    def noted(kind, features, ids):
        asked[kind] = features, ids, read(kind, features, ids)
        return asked[kind][2]

    monkeypatch.setattr(model, "read", noted)
    loss = model.losses(shown, ids)["matching"]
    seen, told, (query, _) = asked["matching"]
    which = [next(i for i in range(3) if torch.equal(one, features[i])) for one in seen]
    assert which[:6] == [0, 1, 2, 0, 1, 2] and which[6:8] == [2, 2] and which[8] in (0, 1)
    assert told.tolist() == [[5, 6], [5, 6], [7, 8], [7, 8], [7, 8], [5, 6], [5, 6], [5, 6], [7, 8]]
    answers = model.match(query).mean(dim=1).log_softmax(dim=1)  # (9, 2)
    torch.testing.assert_close(loss, -(answers[:3, 1].sum() + answers[3:, 0].sum()) / 9)
    same = model.losses(shown, ids[[0, 0, 0]])["matching"]  # no caption is wrong, so all answers are yes
    answers = model.match(asked["matching"][2][0]).mean(dim=1).log_softmax(dim=1)
    torch.testing.assert_close(same, -answers[:, 1].mean())


def test_captions_of_a_batch_are_the_tokens_with_a_loss(tiny_model, captions, tokenizer):
    dataset = captions(tiny_model.processor)
    batch = batch_of(dataset, [0, 4])
    for row, said in zip(blip2.captions_of(batch["labels"]), ("The big red fish", "The small blue fish")):
        text = tokenizer.decode(row[row >= 0].tolist())
        assert text.strip().startswith(said) and tokenizer.image_id not in row


def test_blip2s_visual_tokens_are_the_queries_through_one_linear_layer(tiny_model, qformer_config, randomise):
    model = randomise(blip2.Blip2(tiny_model, blip2.QFormer(qformer_config)))
    bridge, shown = model.multi_modal_projector, pictures(2)
    query, text = bridge.qformer(model.vision_tower(shown, -2))
    assert query.shape == (2, 5, 16) and text.shape == (2, 0, 16) and model.processor.num_image_tokens == 5
    torch.testing.assert_close(model.encode_images(shown), query @ bridge.linear.weight.T + bridge.linear.bias)


# Kosmos-1


def test_interleaved_rows_match_a_brute_force_splice(tiny_model, tokenizer, randomise):
    """Rows with no picture, one, and three (two of them side by side)."""
    model = randomise(kosmos.Kosmos(tiny_model, count=4))
    documents = [
        ["The fish is red."],
        ["It is", None, " in the middle"],
        [None, None, "The boat", None, "and a tree", " at the top"],
    ]
    encoded = [kosmos.encode_document(pieces, model.processor) for pieces in documents]
    batch, shown = kosmos.pad_rows(encoded, tokenizer.pad_id), pictures(4)
    embeddings = model.embed(batch["input_ids"], shown)
    table, projector = model.language_model.embed_tokens, model.multi_modal_projector
    left, total = iter(shown), []
    for row, pieces in enumerate(documents):
        parts, targets = [], []
        for piece in pieces:
            if piece is None:
                visual = projector.resampler(model.vision_tower(next(left)[None], -2))[0]  # (4, hidden)
                parts += [projector.bounds[:1], visual, projector.bounds[1:]]
                targets += [kosmos.IGNORE] * 6
            else:
                ids = tokenizer.encode(piece)
                parts.append(table(torch.tensor(ids)))
                targets += ids
        spliced = torch.cat([*parts, table.weight[tokenizer.eos_id][None]])
        targets = torch.tensor([*targets, tokenizer.eos_id])
        assert batch["labels"][row, : len(targets)].tolist() == targets.tolist()
        torch.testing.assert_close(embeddings[row, : len(spliced)], spliced, rtol=1e-4, atol=1e-5)
        logits, loss = next_token_loss(model.language_model, model.language_model(spliced[None]), targets[None])
        total += [loss] * len(logits)
    mean = torch.stack(total).mean()
    torch.testing.assert_close(model(batch["input_ids"], shown, None, batch["labels"])[1], mean)


def test_documents_have_one_picture_then_two_and_text_rows_have_none(tiny_model, captions, tokenizer):
    model = kosmos.Kosmos(tiny_model, count=4)
    documents = kosmos.Documents(captions(model.processor, "mixed.json"), most=2)
    assert [list(span) for span in documents.spans] == [[0], [1, 2], [3], [4, 5], [6]]
    batch = batch_of(documents, [4, 1, 0])
    marks = (batch["input_ids"] == tokenizer.image_id).sum(dim=1)
    assert marks.tolist() == [0, 12, 6] and batch["pixel_values"].shape == (3, 3, 24, 24)
    for shown, row in zip(batch["pixel_values"], (1, 2, 0)):
        assert torch.equal(shown, documents.captions.pixels(documents.captions.rows[row]))
    said = [tokenizer.decode(row[row >= 0].tolist()) for row in batch["labels"]]
    assert (batch["input_ids"][2, :6] == tokenizer.image_id).all()  # a picture, then its caption
    assert [text.count("fish") for text in said] == [0, 2, 1] and "boat" in said[0]
    assert "What" not in tokenizer.decode(batch["input_ids"][0].tolist())  # the question is not in the document


def test_documents_leave_out_what_captions_leave_out_and_name_a_picture_that_cannot_be_read(
    tiny_model, captions, tmp_path
):
    model = kosmos.Kosmos(tiny_model, count=4)
    captions(model.processor)
    (tmp_path / "1.png").unlink()
    (tmp_path / "3.png").write_bytes(b"no picture")
    left = ConversationDataset(tmp_path / "mixed.json", tmp_path, model.processor, max_rejected=1)
    documents = kosmos.Documents(left, most=2)
    assert [list(span) for span in documents.spans] == [[0], [1, 2], [3], [4, 5]]  # of rows 0, 2, 3, 4, 5 and 6
    with pytest.raises(UserError, match=r"mixed\.json: row 3: .*3\.png"):
        documents[0, 0, 1]
    row = documents.captions.rows[4]
    assert torch.equal(documents[0, 0, 2]["pixel_values"][0], documents.captions.pixels(row))
    assert documents.rejected is left.rejected and len(left.rejected.found) == 1


def test_kosmos_trains_all_that_the_loss_reaches(tiny_model, captions, qformer_config):
    for layer in (-2, -1, 2):
        tiny_model.config.vision_feature_layer = layer
        task = prepared("kosmos", tiny_model, captions, qformer_config)
        task.loss(batch_of(task.dataset, [0, 1])).backward()
        for name, parameter in task.model.named_parameters():
            assert parameter.requires_grad == (parameter.grad is not None), name
        last = next(task.model.vision_tower.encoder.layers[-1].parameters())
        assert last.requires_grad == (layer == -1)


# All of them

ROADS = ("frozen", "flamingo", "blip2/first", "blip2", "kosmos")
LEARNS = {
    "frozen": {"vision_tower", "multi_modal_projector"},
    "flamingo": {"multi_modal_projector", "language_model"},
    "blip2/first": {"qformer", "query_projection", "text_projection", "scale", "match", "word"},
    "blip2": {"multi_modal_projector"},
    "kosmos": {"vision_tower", "multi_modal_projector", "language_model"},
}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", ROADS)
def test_the_loop_lowers_the_loss_and_moves_only_what_learns(
    name, optimizer, tiny_model, captions, qformer_config, tmp_path
):
    task = prepared(name, tiny_model, captions, qformer_config)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    recipe = Recipe(0.01, batch_size=len(task.dataset), epochs=25, optimizer=optimizer)
    train(task, recipe, Run(tmp_path / "out", dtype=torch.float32, compile=False))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "out.metrics.jsonl").read_text().splitlines()]
    # A frozen decoder with random weights can be told little by what stands before its words.
    assert losses[-1] < losses[0] * (0.8 if name in ("blip2/first", "kosmos") else 0.99)
    learns = {name for name, parameter in task.model.named_parameters() if parameter.requires_grad}
    moved = {name for name, value in task.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved - {"language_model.lm_head.weight"} == learns  # the head is the embedding
    assert {name.split(".")[0] for name in learns} == LEARNS[name]
    if name == "flamingo":
        assert not any(".block." in name or "embed_tokens" in name for name in learns)
    from safetensors.torch import load_file

    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored.keys() == learns and all(torch.equal(stored[name], task.model.state_dict()[name]) for name in learns)


@pytest.mark.parametrize("name", ["frozen", "flamingo", "blip2", "kosmos"])
def test_a_road_leaves_the_llava_that_it_is_made_from_as_it_was(name, tiny_model, captions, qformer_config):
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    model = prepared(name, tiny_model, captions, qformer_config).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    after = tiny_model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("name", ["frozen", "flamingo", "blip2", "kosmos"])
def test_a_batch_of_text_gives_all_that_learns_a_gradient(name, tiny_model, captions, qformer_config):
    task = prepared(name, tiny_model, captions, qformer_config)
    task.loss(batch_of(captions(task.model.processor, "mixed.json"), [6])).backward()
    for name, parameter in task.model.named_parameters():
        if name != "language_model.lm_head.weight":
            assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize("name", ["frozen", "flamingo", "blip2", "kosmos"])
def test_generation_with_a_cache_is_the_plain_pass_repeated(
    name, lively_model, captions, qformer_config, randomise, tokenizer
):
    model = randomise(prepared(name, lively_model, captions, qformer_config).model)
    count = model.processor.num_image_tokens
    words = tokenizer.encode("The fish is")
    rows = torch.tensor([[*[tokenizer.image_id] * count, *words], [*words, *[tokenizer.image_id] * count]])
    shown = pictures(2)
    new, ids = model.generate(rows, shown, max_new_tokens=5, stop_ids=[]), rows
    with torch.inference_mode():
        for _ in range(5):
            ids = torch.cat([ids, model(ids, shown)[0][:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    assert torch.equal(new, ids[:, rows.shape[1] :])
    with torch.inference_mode():  # one row, as in a talk
        one = fast.generate_ids(model.language_model, model.embed(rows[:1], shown[:1]), None, 5)
        assert torch.equal(collect(one, [], 0), new[:1])
