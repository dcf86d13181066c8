"""Fast generation for one conversation: the decoder's forward pass of a single token, written without modules.

Nothing here is needed to understand LLaVA; the result equals that of Decoder.forward() and lm_head up to rounding.
With one token, every matrix is multiplied by a single vector. A large model then spends its time reading weights from
memory, and a small one spends it on calling modules and operations, a few microseconds per call. So:

- torch.mv multiplies a matrix by a vector. On a CPU, F.linear takes twice as long with bfloat16 weights.
- There are no modules, no batch, no padding and no mask: the newest token sees every earlier token.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from minillava.model.attention import attend
from minillava.model.decoder import Decoder, KVCache, rope_frequencies, rope_tables, rotate
from minillava.model.generation import sample
from minillava.model.lora import LoraLinear


@torch.inference_mode()
def generate_ids(
    decoder: Decoder, embeddings: Tensor, max_new_tokens: int = 256, temperature: float = 0.0
) -> Iterator[Tensor]:
    """The same as generation.generate_ids(), for one row (1, T, hidden) without padding."""
    capacity = embeddings.shape[1] + max_new_tokens
    cache = KVCache(decoder.config, 1, capacity, embeddings.dtype, embeddings.device)
    logits = decoder.lm_head(decoder(embeddings, cache=cache)[:, -1])  # (1, V)
    step = Step(decoder, cache)
    for left in reversed(range(max_new_tokens)):
        ids = sample(logits, temperature)
        yield ids
        if left:
            logits = step(ids)


class Step:
    """The forward pass of one token after those in ``cache``, which holds one row without padding."""

    def __init__(self, decoder: Decoder, cache: KVCache):
        self.cache, self.head_dim = cache, decoder.config.head_dim
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
        head_dim, at = self.head_dim, self.cache.length
        cos, sin = (table[0, 0, at] for table in self.rope)  # (d,)
        x = self.embed_tokens[ids[0]]  # (hidden,)
        for block, keys, values in self.layers:
            y = self.rms_norm(x, block["input_layernorm.weight"])
            q = rotate(torch.mv(block["self_attn.q_proj.weight"], y).view(-1, head_dim), cos, sin)  # (heads, d)
            keys[:, at] = rotate(torch.mv(block["self_attn.k_proj.weight"], y).view(-1, head_dim), cos, sin)
            values[:, at] = torch.mv(block["self_attn.v_proj.weight"], y).view(-1, head_dim)
            y = attend(q[None, :, None], keys[None, :, : at + 1], values[None, :, : at + 1])  # (1, heads, 1, d)
            x = x + torch.mv(block["self_attn.o_proj.weight"], y.view(-1))
            y = self.rms_norm(x, block["post_attention_layernorm.weight"])
            y = F.silu(torch.mv(block["mlp.gate_proj.weight"], y)) * torch.mv(block["mlp.up_proj.weight"], y)
            x = x + torch.mv(block["mlp.down_proj.weight"], y)
        self.cache.length += 1
        return torch.mv(self.lm_head, self.rms_norm(x, self.norm))[None]


def is_plain(decoder: Decoder) -> bool:
    """Whether Step may replace ``decoder``. Not with LoRA, which Step ignores, and not if it is compiled."""
    return decoder._compiled_call_impl is None and not any(isinstance(part, LoraLinear) for part in decoder.modules())
