"""BLIP-2: a Q-Former gathers, with a few learned queries, what a frozen decoder needs to know of a picture.

Li et al. 2023, BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders and Large Language Models,
arXiv 2301.12597, sections 3.1 to 3.3:

    pixels --frozen ViT--> features --Q-Former--> Q vectors --linear--> visual tokens --> frozen decoder

The Q-Former (section 3.1, figure 2) is a BERT: post-norm blocks over queries and text together. Queries and text share
self-attention; only the queries look at the picture, by cross-attention in every other block; each of the two has its
own feed-forward layers. It is trained twice.

- **First, with the ViT** (section 3.2), on three losses, each with its own mask of the self-attention:

      contrast     queries | text        neither sees the other; the most similar query is the picture's score
      matching     queries <-> text      all see all; does this caption belong to this picture?
      captioning   queries <- text       text is causal and sees the queries; queries see only queries

  In captioning all that the text can know of the picture comes through the queries.
- **Then, with the decoder** (section 3.3): one linear layer brings the queries to the decoder's width, and the loss is
  the decoder's on the next token. There is no text in the Q-Former any more.

Trained: first the Q-Former and the heads of the three losses; then the Q-Former's part for queries, and the linear
layer. Frozen: the ViT in both, the decoder in the second. The paper's Q-Former begins as BERT-base; here it begins
random.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessons.roads.common import CrossAttention, Road, road_task
from minillava.config import TextConfig
from minillava.inputs.conversation import IGNORE
from minillava.inputs.conversations import ConversationDataset, pad
from minillava.model.attention import CLOSED
from minillava.model.contrastive import TextEmbeddings
from minillava.model.llava import Llava
from minillava.model.vision import MLP, Attention, VisionTower
from minillava.training.tasks import Task

MASKS = ("contrast", "matching", "captioning")


def attention_mask(kind: str, queries: int, text: Tensor) -> Tensor:
    """Who sees whom (figure 2, right): (B, 1, Q + T, Q + T), 0 or CLOSED. text (B, T) is True where there is text.

    ``kind`` is one of MASKS. No one sees padding, which is on the right of the text.
    """
    length = queries + text.shape[1]
    is_text = torch.arange(length, device=text.device) >= queries  # (Q + T,)
    i, j = is_text[:, None], is_text[None, :]  # i looks at j
    if kind == "contrast":
        see = i == j
    elif kind == "matching":
        see = torch.ones(length, length, dtype=torch.bool, device=text.device)
    else:
        see = ~j | (i & torch.ones_like(i & j).tril())
    there = torch.cat([text.new_ones(len(text), queries), text], dim=1)  # (B, Q + T)
    see = see & there[:, None, :]  # (B, Q + T, Q + T)
    return torch.zeros(see.shape, device=see.device).masked_fill(~see, CLOSED)[:, None]


@dataclass
class QFormerConfig(TextConfig):
    """The sizes; BERT-base's are 768, 3072, 12 layers, 12 heads. The vocabulary has [CLS] and [DEC] as its last two."""

    hidden_size: int = 128
    intermediate_size: int = 256
    num_hidden_layers: int = 4
    max_position_embeddings: int = 128
    num_queries: int = 32
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    cross_every: int = 2  # a block with cross-attention, then cross_every - 1 without
    source_size: int = 128  # the width of the picture's features


class QFormerLayer(nn.Module):
    """norm(x + self-attention(x)); the queries: norm(x + cross-attention(x)); norm(x + mlp(x)): (B, Q + T, hidden)."""

    def __init__(self, config: QFormerConfig, looks: bool):
        super().__init__()

        def norm() -> nn.LayerNorm:
            return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

        self.self_attn, self.norm = Attention(config), norm()
        self.cross_attn = None
        if looks:
            self.cross_attn = CrossAttention(config.hidden_size, config.source_size, config.num_attention_heads)
            self.cross_norm = norm()
        self.query_mlp, self.query_norm = MLP(config), norm()
        self.text_mlp, self.text_norm = MLP(config), norm()

    def forward(self, x: Tensor, features: Tensor, queries: int, mask: Tensor | None) -> Tensor:
        x = self.norm(x + self.self_attn(x, mask))
        query, text = x[:, :queries], x[:, queries:]  # (B, Q, hidden), (B, T, hidden)
        if self.cross_attn is not None:
            query = self.cross_norm(query + self.cross_attn(query, features))
        query = self.query_norm(query + self.query_mlp(query))
        return torch.cat([query, self.text_norm(text + self.text_mlp(text))], dim=1)


class QFormer(nn.Module):
    """Features (B, patches, source_size), with or without a text -> what the queries and the text have become."""

    def __init__(self, config: QFormerConfig):
        super().__init__()
        self.config = config
        self.queries = nn.Parameter(torch.randn(config.num_queries, config.hidden_size) * 0.02)
        self.text_embeddings = TextEmbeddings(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        every = config.cross_every
        self.layers = nn.ModuleList(QFormerLayer(config, i % every == 0) for i in range(config.num_hidden_layers))

    def forward(self, features: Tensor, ids: Tensor | None = None, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """ids (B, T) and attention_mask() -> (B, Q, hidden) and (B, T, hidden); without ids, T is 0."""
        x = self.queries.expand(len(features), -1, -1)  # (B, Q, hidden)
        if ids is not None:
            x = torch.cat([x, self.text_embeddings(ids)], dim=1)  # (B, Q + T, hidden)
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, features, len(self.queries), mask)
        return x[:, : len(self.queries)], x[:, len(self.queries) :]


class FirstTraining(nn.Module):
    """The Q-Former between a frozen ViT and captions, with a head for each of the three losses."""

    def __init__(self, vision_tower: VisionTower, config: QFormerConfig, feature_layer: int = -2):
        super().__init__()
        self.vision_tower, self.feature_layer = vision_tower, feature_layer
        self.qformer = QFormer(config)
        self.query_projection = nn.Linear(config.hidden_size, config.projection_dim)
        self.text_projection = nn.Linear(config.hidden_size, config.projection_dim)
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # of the similarities; a logarithm, as CLIP's
        self.match = nn.Linear(config.hidden_size, 2)  # no, yes
        self.word = nn.Linear(config.hidden_size, config.vocab_size)

    def read(self, kind: str, features: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures and captions (B, T), -100 for padding, through the Q-Former with the mask of ``kind``.

        The first token tells the Q-Former what is asked of it: [DEC] for captioning, otherwise [CLS].
        """
        first = self.qformer.config.vocab_size - (1 if kind == "captioning" else 2)
        ids = F.pad(ids, (1, 0), value=first)  # (B, 1 + T)
        mask = attention_mask(kind, len(self.qformer.queries), ids != IGNORE)
        return self.qformer(features, ids.clamp(min=0), mask)

    def similarities(self, features: Tensor, ids: Tensor) -> Tensor:
        """(B, B): how well each picture's best query fits each caption (section 3.2)."""
        query, text = self.read("contrast", features, ids)
        query = F.normalize(self.query_projection(query), dim=-1)  # (B, Q, D)
        text = F.normalize(self.text_projection(text[:, 0]), dim=-1)  # (B, D), from [CLS]
        return self.scale.exp() * torch.einsum("iqd,jd->ijq", query, text).amax(dim=-1)

    def losses(self, pixel_values: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """Pictures (B, 3, H, W) and their captions (B, T), -100 for padding -> the loss of each kind."""
        with torch.no_grad():
            features = self.vision_tower(pixel_values, self.feature_layer)  # (B, patches, vision hidden)
        # Contrast. Equal captions in a batch are all right, so the target is spread over them.
        similar = self.similarities(features, ids).float()
        same = (ids[:, None] == ids[None]).all(dim=-1)  # (B, B)
        target = same / same.sum(dim=1, keepdim=True)
        contrast = (F.cross_entropy(similar, target) + F.cross_entropy(similar.T, target)) / 2

        # Matching: each picture with its caption, with a wrong caption, and each caption with a wrong picture. A wrong
        # one is drawn by its similarity ("hard negatives"). If the batch has only this caption, it stays right. The
        # draw depends on the batch only, so a resumed training makes it again.
        draw = torch.Generator(ids.device).manual_seed(ids.sum().item())
        wrong = similar.detach().masked_fill(same, CLOSED)
        rows = torch.arange(len(ids), device=ids.device)
        text = torch.multinomial(wrong.softmax(dim=1), 1, generator=draw).squeeze(1)  # (B,): for each picture
        picture = torch.multinomial(wrong.T.softmax(dim=1), 1, generator=draw).squeeze(1)  # (B,): for each caption
        pictures, texts = torch.cat([rows, rows, picture]), torch.cat([rows, text, rows])  # (3 B,)
        query, _ = self.read("matching", features[pictures], ids[texts])
        answer = self.match(query).mean(dim=1)  # (3 B, 2): the mean over the queries
        matching = F.cross_entropy(answer.float(), same[pictures, texts].long())

        # Captioning: the output at [DEC] predicts the first token, and so on.
        _, words = self.read("captioning", features, ids[:, :-1])  # (B, T, hidden)
        captioning = F.cross_entropy(self.word(words).flatten(0, 1).float(), ids.flatten(), ignore_index=IGNORE)
        return {"contrast": contrast, "matching": matching, "captioning": captioning}


def captions_of(labels: Tensor) -> Tensor:
    """labels (B, T) of a batch -> only the tokens with a loss, (B, longest), filled with -100 on the right."""
    return pad([row[row != IGNORE].tolist() for row in labels], IGNORE).to(labels.device)


def first_task(model: FirstTraining, dataset: ConversationDataset) -> Task:
    """Train the Q-Former on captions, each with one picture."""
    model.requires_grad_(True)
    model.vision_tower.requires_grad_(False)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        return sum(model.losses(batch["pixel_values"], captions_of(batch["labels"])).values())

    return road_task("qformer", model, dataset, loss)


class Bridge(nn.Module):
    """Features (images, patches, vision hidden) -> visual tokens (images, Q, decoder hidden)."""

    def __init__(self, qformer: QFormer, decoder_size: int):
        super().__init__()
        self.qformer = qformer
        self.linear = nn.Linear(qformer.config.hidden_size, decoder_size)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.qformer(features)[0])


class Blip2(Road):
    """A Llava whose projector is a Q-Former, trained before by first_task(), and a linear layer."""

    def __init__(self, llava: Llava, qformer: QFormer):
        super().__init__(llava, Bridge(qformer, llava.config.decoder.hidden_size), len(qformer.queries))


def blip2_task(model: Blip2, dataset: ConversationDataset) -> Task:
    """Train the Q-Former and the linear layer for the frozen decoder."""
    model.requires_grad_(False)
    for name, parameter in model.multi_modal_projector.named_parameters():
        parameter.requires_grad_("text_" not in name)  # no text goes through the Q-Former now
    return road_task("blip2", model, dataset)
