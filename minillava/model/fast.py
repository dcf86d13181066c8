"""Fast generation: the plain decoder's tokens, sooner. Nothing here is needed to understand LLaVA.

With one new token per step, every matrix is multiplied by one vector. A large model then spends its time reading
weights from memory, and a small one spends it on calling modules and operations, a few microseconds per call. So:

- On a GPU, the decoder's own blocks are recorded once as a CUDA graph, which replays all their kernels in one call.
- On a CPU, one row takes ``Step``: the same arithmetic, written without modules, batch, padding and mask.

Results equal those of generation.generate_ids() up to rounding.
"""

from collections.abc import Iterator
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from minillava.model import generation
from minillava.model.attention import CLOSED, attend
from minillava.model.decoder import Block, Decoder, KVCache, rope_frequencies, rope_tables
from minillava.model.generation import sample
from minillava.model.lora import has_lora

BUCKET = 256  # a graph's cache has room for a multiple of so many tokens, so that the next answer can use it again
LARGE = 2**18  # numbers in a matrix that is worth dividing over the CPU's threads


def generate_ids(
    decoder: Decoder,
    embeddings: Tensor,
    attention_mask: Tensor | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> Iterator[Tensor]:
    """The same as generation.generate_ids(), but the ids (B,) may be on the CPU."""
    if decoder._compiled_call_impl is not None or has_other_layers(decoder):  # compiled, or changed, by the caller
        generate = generation.generate_ids
    elif embeddings.is_cuda:
        generate = generate_by_graph
    elif attention_mask is None and len(embeddings) == 1 and is_plain(decoder):
        generate = generate_by_step
    else:
        generate = generation.generate_ids
    return generate(decoder, embeddings, attention_mask, max_new_tokens, temperature, top_p)


def has_other_layers(decoder: Decoder) -> bool:
    """Whether any layer is not a Block: it may depend on tensors that a graph does not know, and Step ignores it."""
    return not all(isinstance(layer, Block) for layer in decoder.layers)


def is_plain(decoder: Decoder) -> bool:
    """Whether Step computes what ``decoder`` computes. Not with LoRA, which Step ignores."""
    return not has_lora(decoder)


@torch.inference_mode()
def generate_by_graph(
    decoder: Decoder,
    embeddings: Tensor,
    attention_mask: Tensor | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
) -> Iterator[Tensor]:
    """The ids are yielded on the CPU. The next step is started before they are, so that the GPU never waits."""
    step = GraphStep.take(decoder, embeddings, embeddings.shape[1] + max_new_tokens)
    try:
        logits = step.start(decoder, embeddings, attention_mask)
        for left in reversed(range(max_new_tokens)):
            ids = sample(logits, temperature, top_p)
            copy = ids.to("cpu", non_blocking=True)
            if copied := torch.cuda.Event() if ids.is_cuda else None:
                copied.record()
            if left:
                logits = step(decoder, ids)
            if copied:
                copied.synchronize()
            yield copy
    finally:
        GraphStep.kept[decoder] = step


class GraphStep:
    """The decoder's pass of one token per row, on tensors that stay where they are: what a CUDA graph can replay.

    The blocks get it in place of a KVCache. The column for the next keys and values is a tensor, and attention runs
    over the whole cache, with a mask that hides the columns that are not filled yet.
    """

    kept: ClassVar[WeakKeyDictionary[Decoder, "GraphStep"]] = WeakKeyDictionary()  # each decoder's last one, not in use

    @classmethod
    def take(cls, decoder: Decoder, embeddings: Tensor, tokens: int) -> "GraphStep":
        """The one kept for the decoder, if that fits and the weights are still where they were; else a new one.

        It is no longer kept, since a second answer at the same time needs a cache of its own.
        """
        capacity = -(-tokens // BUCKET) * BUCKET
        key = len(embeddings), capacity, embeddings.dtype, [p.data_ptr() for p in decoder.parameters()]
        step = cls.kept.pop(decoder, None)
        if step is not None and step.key == key:
            return step
        del step  # its memory is needed for the new one
        return cls(decoder, embeddings, capacity, key)

    def __init__(self, decoder: Decoder, embeddings: Tensor, capacity: int, key: tuple):
        self.key = key
        batch, dtype, device = len(embeddings), embeddings.dtype, embeddings.device
        self.cache = KVCache(decoder.config, batch, capacity, dtype, device)
        self.column = torch.zeros(1, dtype=torch.long, device=device)
        self.ids = torch.zeros(batch, dtype=torch.long, device=device)
        self.positions = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self.mask = torch.full((batch, 1, 1, capacity), CLOSED, dtype=dtype, device=device)
        self.graph = None
        if embeddings.is_cuda:
            self.record(decoder)

    def record(self, decoder: Decoder) -> None:
        """Record forward() as a CUDA graph. It runs once before, since a first call may allocate or compile."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.forward(decoder)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.logits = self.forward(decoder)
        self.graph = graph

    def start(self, decoder: Decoder, embeddings: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Read the prompt (B, T, hidden) into the cache; returns the logits of the next token (B, V)."""
        length = embeddings.shape[1]
        self.cache.length = 0
        hidden = decoder(embeddings, attention_mask, self.cache)
        seen = embeddings.new_ones(embeddings.shape[:2]) if attention_mask is None else attention_mask  # (B, T)
        self.column.fill_(length)
        self.positions.copy_((seen > 0).sum(dim=1, keepdim=True))
        self.mask.fill_(CLOSED)
        self.mask[:, 0, 0, :length].masked_fill_(seen > 0, 0)
        return decoder.lm_head(hidden[:, -1])

    def __call__(self, decoder: Decoder, ids: Tensor) -> Tensor:
        """The newest ids (B,) -> the logits of the next token (B, V), which the next call overwrites."""
        self.ids.copy_(ids)
        if self.graph is None:
            return self.forward(decoder)
        self.graph.replay()
        return self.logits

    def forward(self, decoder: Decoder) -> Tensor:
        """Decoder.forward() and lm_head for the tokens in ``ids``; then everything moves on by one."""
        self.mask.index_fill_(3, self.column, 0)
        rope = rope_tables(self.positions, rope_frequencies(decoder.config, self.ids.device))
        x = decoder.embed_tokens(self.ids[:, None])  # (B, 1, hidden)
        for layer in decoder.layers:
            x = layer(x, rope, self.mask, self)
        self.column += 1
        self.positions += 1
        return decoder.lm_head(decoder.norm(x))[:, 0]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """KVCache.append(), at ``column``. Returns the whole cache (B, kv_heads, capacity, d)."""
        keys, values = self.cache.store[layer]
        keys.index_copy_(2, self.column, k)
        values.index_copy_(2, self.column, v)
        return keys, values


@torch.inference_mode()
def generate_by_step(
    decoder: Decoder, embeddings: Tensor, attention_mask: None, max_new_tokens: int, temperature: float, top_p: float
) -> Iterator[Tensor]:
    """For one row (1, T, hidden) without padding."""
    capacity = embeddings.shape[1] + max_new_tokens
    cache = KVCache(decoder.config, 1, capacity, embeddings.dtype, embeddings.device)
    logits = decoder.lm_head(decoder(embeddings, cache=cache)[:, -1])  # (1, V)
    step = Step(decoder, cache)
    for left in reversed(range(max_new_tokens)):
        ids = sample(logits, temperature, top_p)
        yield ids
        if left:
            logits = step(ids)


class Step:
    """The forward pass of one token after those in ``cache``, which holds one row without padding."""

    def __init__(self, decoder: Decoder, cache: KVCache):
        self.cache, config, weight = cache, decoder.config, decoder.embed_tokens.weight
        self.heads = [config.num_attention_heads, config.num_key_value_heads]
        self.qk = weight.new_empty(sum(self.heads), config.head_dim)  # a token's queries, then its keys
        self.q, self.k = (part.view(-1) for part in self.qk.split(self.heads))
        self.halves = torch.arange(config.head_dim, device=weight.device).roll(config.head_dim // 2)
        self.embed_tokens, self.lm_head = decoder.embed_tokens.weight, decoder.lm_head.weight
        self.norm = decoder.norm.weight
        blocks = [dict(layer.named_parameters()) for layer in decoder.layers]
        self.layers = [(block, keys, values) for block, (keys, values) in zip(blocks, cache.store[:, :, 0])]
        # RoPE's cos and sin for all positions. Computing them at every step would double the time of attention.
        positions = torch.arange(cache.store.shape[4], device=cache.store.device)[None]
        self.rope = rope_tables(positions, rope_frequencies(decoder.config, cache.store.device))
        # A tensor, since PyTorch turns a Python number into a new tensor at every call.
        self.eps = torch.tensor(decoder.config.rms_norm_eps, device=cache.store.device)

    def rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm of one vector (hidden,)."""
        wide = x.float()
        scale = torch.add(self.eps, wide.dot(wide), alpha=1 / len(x)).rsqrt()
        return (wide * scale * weight.float()).to(x.dtype)

    def __call__(self, ids: Tensor) -> Tensor:
        """The id of the newest token, (1,) -> the logits of the next token, (1, V)."""
        at = self.cache.length
        cos, sin = (table[0, 0, at] for table in self.rope)  # (d,)
        x = self.embed_tokens[ids[0]]  # (hidden,)
        for block, keys, values in self.layers:
            y = self.rms_norm(x, block["input_layernorm.weight"])
            multiply(block["self_attn.q_proj.weight"], y, self.q)
            multiply(block["self_attn.k_proj.weight"], y, self.k)
            partners = self.qk.index_select(1, self.halves)  # as in rotate(), for queries and keys at once
            q, k = torch.addcmul(self.qk * cos, partners, sin).to(x.dtype).split(self.heads)  # (heads or kv_heads, d)
            keys[:, at] = k
            values[:, at] = multiply(block["self_attn.v_proj.weight"], y).view(k.shape)
            y = attend(q[None, :, None], keys[None, :, : at + 1], values[None, :, : at + 1])  # (1, heads, 1, d)
            x = x + multiply(block["self_attn.o_proj.weight"], y.view(-1))
            y = self.rms_norm(x, block["post_attention_layernorm.weight"])
            y = F.silu(multiply(block["mlp.gate_proj.weight"], y)) * multiply(block["mlp.up_proj.weight"], y)
            x = x + multiply(block["mlp.down_proj.weight"], y)
        self.cache.length += 1
        return multiply(self.lm_head, self.rms_norm(x, self.norm))[None]


def multiply(matrix: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
    """matrix (rows, n) times x (n,) -> (rows,), on a CPU. With ``out``, the result is also there.

    torch.mv uses one thread, which cannot read memory at full speed. So a large float32 matrix is cut into as many
    parts as there are threads, and each thread multiplies a part. With bfloat16 or a small matrix torch.mv is faster.
    """
    parts = torch.get_num_threads()
    if matrix.numel() < LARGE or matrix.dtype != torch.float32 or len(matrix) % parts:
        return torch.mv(matrix, x, out=out)
    out = None if out is None else out.view(parts, 1, -1)
    return torch.bmm(x.expand(parts, 1, -1), matrix.view(parts, -1, len(x)).transpose(1, 2), out=out).view(-1)
