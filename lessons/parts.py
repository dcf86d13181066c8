"""What a reader rebuilds: where each part is, and the bodies taken out of it, each with a hint.

The order is the one to write them in: a body needs those above it, if any. ``tests/test_PART.py`` judges them.
"""

from pathlib import Path

# Each part of minillava that has an exercise, or planted faults that its tests must notice (tests/faults/).
PATHS = {
    "attention": "minillava/model/attention.py",
    "vision": "minillava/model/vision.py",
    "projector": "minillava/model/projector.py",
    "decoder": "minillava/model/decoder.py",
    "tokenizer": "minillava/inputs/tokenizer.py",
    "byte_bpe": "minillava/inputs/byte_bpe.py",
    "sentencepiece_bpe": "minillava/inputs/sentencepiece_bpe.py",
    "contrastive": "minillava/model/contrastive.py",
    "templates": "minillava/inputs/templates.py",
    "chat_template": "minillava/formats/chat_template.py",
    "conversation": "minillava/inputs/conversation.py",
    "llava": "minillava/model/llava.py",
    "generation": "minillava/model/generation.py",
    "lora": "minillava/model/lora.py",
    "fast": "minillava/model/fast.py",
    "talk": "minillava/talk.py",
}
FOLDER = Path("exercises")
TO_WRITE = "is yet to be written"  # what a body that was taken out says when it is called

PARTS: dict[str, dict[str, str]] = {
    "attention": {
        "causal_mask": "CLOSED above a diagonal, 0 on it and below. Without a past it is the main diagonal.",
        "attend": (
            "scores = q k^T / sqrt(d), (B, heads, T, S); add the mask; softmax over S, the keys; then times v. Of "
            "n * kv_heads query heads, the first n read the first key head, the next n the second, and so on. Where "
            "causal is True, the mask is causal_mask()."
        ),
    },
    "vision": {
        "quick_gelu": "The docstring is the formula.",
        "Embeddings.forward": (
            "The convolution gives (B, hidden, rows, columns): flatten rows and columns into patches, and put hidden "
            "last. The class embedding (hidden,) becomes (B, 1, hidden) and goes first. Add a position to each."
        ),
        "Attention.forward": (
            "Cut the last axis of q, k and v into heads, (B, T, heads * d) -> (B, heads, T, d); attend(); the heads "
            "side by side again, (B, T, hidden); out_proj."
        ),
        "MLP.forward": "(B, T, hidden) -> (B, T, intermediate) -> (B, T, hidden), the activation in the middle.",
        "Block.forward": "The class docstring is the formula. Add to x what has not been normalised.",
        "Encoder.forward": "The first num_layers blocks, one after the other; None is all of them.",
        "VisionTower.hidden_state": (
            "Embeddings, pre_layrnorm, then as many blocks as layer says: 2 is two of them, -1 all, -2 all but one. "
            "Raise ValueError that names pixel_values for another shape, and one that names the layer for one too deep."
        ),
        "VisionTower.forward": "hidden_state() of the layer; the class token stands first.",
    },
    "projector": {
        "MLPProjector.__init__": (
            "super().__init__() first. linear_1 goes from vision_size to decoder_size, linear_2 stays there."
        ),
        "MLPProjector.forward": "(..., vision_size) -> (..., decoder_size): linear_1, GELU, linear_2.",
    },
    "decoder": {
        "RMSNorm.forward": (
            "rms(x) = sqrt(mean(x^2) + eps) over the last axis. In float32, whatever x is; the result has x's dtype."
        ),
        "rope_frequencies": (
            "torch.arange counts the pairs; config.rope_theta is the base. For llama3: a pair turns frequency * "
            "original_max_position_embeddings / 2 pi times in the first context. From high_freq_factor turns up the "
            "frequency is kept, from low_freq_factor down it is divided by factor, and between it is a mixture."
        ),
        "rope_tables": (
            "angle = position * frequency, (B, 1, T, head_dim / 2); each pair's angle stands twice, half a head apart. "
            "sin is negative in the first half, as rotate() wants it."
        ),
        "rotate": (
            "A pair (a, b) becomes (a cos - b sin, b cos + a sin). All at once: x * cos + swapped * sin, where swapped "
            "is x with its halves exchanged; the first half of sin is negative already."
        ),
        "KVCache.append": (
            "self.store is (layers, 2, B, kv_heads, capacity, head_dim); self.length, where the past ends, stays."
        ),
        "MLP.forward": "The module docstring has the formula.",
        "visible": (
            "Compare attention_mask (B, S) with its last T entries, each with each: (B, T, S). Padding is not seen. "
            "torch.tril cuts off what comes later; its diagonal is where the first new token sees itself."
        ),
        "Attention.forward": (
            "q (B, heads, T, head_dim), k and v (B, kv_heads, T, head_dim). Turn q and k, not v. Then the cache, if "
            "there is one, and attend(), causal where no mask says what to see and the token is not single. Put the "
            "heads side by side again, (B, T, heads * head_dim); o_proj."
        ),
        "Block.forward": "The class docstring is the formula. Add to x what has not been normalised.",
        "Decoder.forward": (
            "Positions (1 or B, T) go on from the cache's length; with an attention_mask a token's is the number of "
            "visible() tokens before it, and the mask is 0 where it sees and CLOSED elsewhere, with an axis for the "
            "heads. Several tokens behind a cache need one too: all ones. Then the rope tables, the layers, the norm. "
            "Once all layers have written, the cache has grown by T."
        ),
    },
    "tokenizer": {
        "_join": "A place where the pair stands becomes one piece; the next look is at the place after it.",
        "train_bpe": (
            "Count words first (regex.findall with SPLIT), and pairs within each word as often as the word occurs. Of "
            "the commonest pairs take the first in byte order, join it in every word, count again."
        ),
        "Tokenizer.decode_bytes": "self._bytes maps ids to bytes.",
        "Tokenizer.decode": (
            "Bytes to text all at once: a character may span several tokens. self._model.adds_space says whether a "
            "space was put first."
        ),
        "Tokenizer.encode": (
            "self._plain.split(text, special) gives texts and ids of added tokens. Of each text, normalised by "
            "self._model.normalize(text, where), self._normalized.split gives texts and ids again; self._model.encode "
            "makes ids of what is text then. Keep count of ``where`` each stands: START, AFTER_TOKEN or INSIDE."
        ),
    },
    "sentencepiece_bpe": {
        "SentencePieceBPE._characters": "self._vocab has the ids of characters, self._byte_ids those of the 256 bytes.",
        "SentencePieceBPE._merge": (
            "self._merges maps (id, id) to (rank, joined id). Begin with a loop that looks at every pair anew each "
            "time. It is right, but slow for long texts: keep the possible merges in a heap, and links to neighbours."
        ),
        "SentencePieceBPE.normalize": "Apply each of self._steps: (pattern, replacement, whether it adds the space).",
        "SentencePieceBPE.encode": (
            "With a scheme (not None), spaces become SPACE, and one is put first if there is none: at the START unless "
            "the scheme is never, AFTER_TOKEN if it is always. With self._splits each SPACE begins a new word. A word "
            "in self._whole is one token."
        ),
    },
    "contrastive": {
        "TextEmbeddings.forward": "(B, T) -> (B, T, hidden); the first T rows of the positions.",
        "TextTower.forward": (
            "Embeddings, encoder under a causal mask, then the hidden state at each row's first end token, normalised. "
            "The end token is the last thing a row sees, so it has seen all of it."
        ),
        "contrastive_loss": (
            "Similarities times exp(scale): (n, m). Along the rows, cross-entropy with match. Along the columns the "
            "target is a distribution: each text's weight spread evenly over its pictures. The mean of the two."
        ),
        "Clip.text_features": "Tower, projection, length 1. In float32 from the projection on.",
        "Clip.image_features": (
            "hidden_state() is (B, 1 + patches, hidden), the class token at 0. Both kinds go through post_layernorm, "
            "the projection and F.normalize."
        ),
        "clip_loss": "Two losses, added: pictures with captions, regions with phrases.",
    },
    "conversation": {
        "image_goes_first": (
            "hashlib.sha256 of the three numbers with spaces between them, and True where the first byte is even."
        ),
        "place_image": "The mark may stand anywhere in the question. A new line between it and the words.",
        "encode_conversation": (
            "The Template's docstring has the order. For each turn, hand parts (text, which marks count in it) to "
            "_runs(): a mark is one id, IMAGE num_image_tokens of them, and the rest goes to tokenizer.encode(text, "
            "special=False, after=input_ids). Extend input_ids and labels together; labels are the ids where it is "
            "learnt and IGNORE elsewhere. _checked() refuses bad turns. At last the bos, where add_bos wants one."
        ),
    },
    "llava": {
        "splice": "Tensor.masked_scatter fills the places where a mask is True, in order. First compare the counts.",
        "next_token_loss": (
            "Position i predicts the label at i + 1. Take the states before a label that is not IGNORE, (N, hidden); "
            "lm_head makes logits of them, cross-entropy in float32 the loss."
        ),
        "Llava.encode_images": "The tower takes the layer and the strategy that the configuration names. Then W.",
        "Llava.embed": (
            "Words have rows in embed_tokens; the placeholder's id may be beyond them, so put another there. Then "
            "splice(). Without pictures every id is a word's."
        ),
        "Llava.forward": "embed(), the language model; then lm_head, or where there are labels next_token_loss().",
    },
    "generation": {
        "sample": "torch.multinomial draws. Softmax in float32.",
        "collect": (
            "done holds the rows that have met a stop. What a row says that was done before this step becomes fill. "
            "Ask for no step after the last row is done. The columns, put side by side, are (N, B): turn them."
        ),
        "generate_ids": (
            "One cache with room for all. The first pass reads the prompt, each later one the token drawn last: the "
            "logits at the last position give the next. attention_mask grows by a column of ones a step."
        ),
        "stream_text": (
            "An incremental UTF-8 decoder turns each token's bytes into whole characters. Hold back the longest end of "
            "the text that is a beginning of the stop; what is before it can go out. At the end the rest goes out."
        ),
    },
    "lora": {
        "LoraLinear.forward": "The layer's own result, and beside it x through lora_A, then lora_B, times self.scale.",
        "LoraLinear.merged": (
            "Add up in float32, and go back to W's dtype. nn.Linear on the device meta has no memory of its own: give "
            "it a weight, an nn.Parameter, and the layer's own bias."
        ),
        "add_lora": (
            "decoder.layers holds the blocks; in each, named_children() of self_attn and of mlp are linear layers. "
            "setattr() puts a LoraLinear in the place of each."
        ),
        "merge_lora": "merged() for each LoraLinear, wherever in the decoder it stands.",
    },
}
