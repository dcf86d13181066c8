"""The exercises: the file of each part, and the functions in it that a reader writes, each with a hint.

The functions are in the order in which to write them: one may need those above it. ``tests/test_PART.py`` tests them.
"""

from pathlib import Path

# All parts with an exercise, or with faults planted on purpose that its tests must catch (tests/faults/).
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
    "gguf": "minillava/formats/gguf.py",
    "gguf_llama": "minillava/formats/gguf_llama.py",
    "conversation": "minillava/inputs/conversation.py",
    "dataset": "minillava/inputs/conversations.py",
    "llava": "minillava/model/llava.py",
    "generation": "minillava/model/generation.py",
    "image": "minillava/inputs/image.py",
    "lora": "minillava/model/lora.py",
    "fast": "minillava/model/fast.py",
    "talk": "minillava/talk.py",
    "terminal": "minillava/terminal.py",
    "evaluate": "minillava/evaluate.py",
    "adapter": "minillava/formats/adapter_config.py",
    "training": "minillava/training/step.py",
    "schedule": "minillava/training/optimizers.py",
    "adamw": "lessons/adamw.py",
    "tensors": "minillava/formats/tensors.py",
    "loop": "minillava/training/loop.py",
    "resume": "minillava/training/resume.py",
    "heldout": "minillava/training/heldout.py",
    "answers": "minillava/training/answers.py",
    "report": "minillava/training/report.py",
    "page": "minillava/page.py",
    "plot": "minillava/training/plot.py",
    "least_squares": "minillava/training/least_squares.py",
    "presets": "train.py",
    "own": "data/own.py",
    "chats": "data/chats.py",
    "look": "minillava/look.py",
    "web": "minillava/web/visits.py",
    "web_server": "minillava/web/server.py",
    "frozen": "lessons/roads/frozen.py",
    "flamingo": "lessons/roads/flamingo.py",
    "blip2": "lessons/roads/blip2.py",
    "kosmos": "lessons/roads/kosmos.py",
    "experiments": "lessons/experiments.py",
    "comparisons": "lessons/comparisons.py",
    "scene_judge": "lessons/scene_judge.py",
    "does_it_look": "lessons/does_it_look.py",
}
FOLDER = Path("exercises")
TO_WRITE = "is yet to be written"  # the end of the error that a body to be written raises

PARTS: dict[str, dict[str, str]] = {
    "attention": {
        "causal_mask": "CLOSED above a diagonal, 0 on and below it. With past = 0 it is the main diagonal.",
        "attend": (
            "scores = q k^T / sqrt(d), (B, heads, T, S); add the mask; softmax over S, the keys; then times v. Of n * "
            "kv_heads query heads, the first n use the first key head, the next n the second, and so on. If causal is "
            "True, the mask is causal_mask(). The mask may be float32 when q is not: the result has the dtype of q."
        ),
    },
    "vision": {
        "quick_gelu": "The docstring is the formula.",
        "Embeddings.forward": (
            "The convolution gives (B, hidden, rows, columns): flatten rows and columns into patches, and put hidden "
            "last. The class embedding (hidden,) becomes (B, 1, hidden) and goes first. Add the position embeddings."
        ),
        "Attention.forward": (
            "Split the last axis of q, k and v into heads, (B, T, heads * d) -> (B, heads, T, d); attend(); join the "
            "heads again, (B, T, hidden); out_proj."
        ),
        "MLP.forward": "(B, T, hidden) -> (B, T, intermediate) -> (B, T, hidden), with the activation between.",
        "Block.forward": "The class docstring is the formula. The residual is x before its norm.",
        "Encoder.forward": "Run the first num_layers blocks in order; None means all of them.",
        "VisionTower.hidden_state": (
            "Embeddings, pre_layrnorm, then the blocks up to layer: 2 means two blocks, -1 all, -2 all but one. Raise "
            "a ValueError that names pixel_values if their shape is wrong, and one that names the layer if it is too "
            "deep."
        ),
        "VisionTower.forward": "hidden_state() of the layer. The class token is the first of its vectors.",
    },
    "projector": {
        "MLPProjector.__init__": (
            "Call super().__init__() first. linear_1 is vision_size -> decoder_size, linear_2 decoder_size -> "
            "decoder_size."
        ),
        "MLPProjector.forward": "(..., vision_size) -> (..., decoder_size): linear_1, GELU, linear_2.",
    },
    "decoder": {
        "RMSNorm.forward": (
            "rms(x) = sqrt(mean(x^2) + eps) over the last axis. Compute in float32; the result has x's dtype."
        ),
        "rope_frequencies": (
            "torch.arange counts the pairs; config.rope_theta is the base. config.rope_scaling is None or a dict: "
            "rope_type and the numbers named here. For llama3: a pair turns frequency * "
            "original_max_position_embeddings / (2 pi) times in the original context. With high_freq_factor or more "
            "turns the frequency is kept, with low_freq_factor or fewer it is divided by factor; in between, "
            "interpolate linearly in the number of turns."
        ),
        "rope_tables": (
            "angle = position * frequency, (B, 1, T, head_dim / 2). Pairs are (i, i + head_dim / 2), so each angle "
            "occurs in both halves of head_dim. The first half of sin is negated, for rotate()."
        ),
        "rotate": (
            "A pair (a, b) becomes (a cos - b sin, b cos + a sin). For all pairs: x * cos + swapped * sin, where "
            "swapped is x with its halves exchanged; the first half of sin is negated already. The tables are float32; "
            "the result has x's dtype."
        ),
        "KVCache.append": (
            "self.store is (layers, 2, B, kv_heads, capacity, head_dim). self.length is the end of the past; do not "
            "change it here."
        ),
        "MLP.forward": "The module docstring has the formula.",
        "visible": (
            "Compare each of the last T entries of attention_mask (B, S) with all S: (B, T, S). No token sees padding. "
            "torch.tril removes what comes later; its diagonal is where the first new token sees itself."
        ),
        "Attention.forward": (
            "q (B, heads, T, head_dim), k and v (B, kv_heads, T, head_dim). Rotate q and k, not v. Then the cache, if "
            "there is one, and attend(): causal if there is no mask and T > 1. Join the heads again, (B, T, heads * "
            "head_dim); o_proj."
        ),
        "Block.forward": "The class docstring is the formula. The residual is x before its norm.",
        "Decoder.forward": (
            "Positions (1 or B, T) start at the cache's length. With an attention_mask a token's position is the "
            "number of visible() tokens before it, and the mask is 0 where a token sees and CLOSED elsewhere, with an "
            "axis for the heads. Several new tokens after a cache need an attention_mask too: all ones. Then the rope "
            "tables, the layers, the norm. Add T to the cache's length after all layers have written to it."
        ),
    },
    "tokenizer": {
        "_join": "Replace two pieces that are the pair by one, then go on after it.",
        "train_bpe": (
            "Count words first (regex.findall with SPLIT). Count the pairs within each word, times the word's count. "
            "Of the most frequent pairs take the first in byte order, join it in every word, and count again."
        ),
        "Tokenizer.decode_bytes": "self._bytes maps ids to bytes.",
        "Tokenizer.decode": (
            "Decode all bytes together: a character may span several tokens. self._model.adds_space says whether "
            "encode() put a space before the text."
        ),
        "Tokenizer.encode": (
            "self._plain.split(text, special) gives texts and ids of added tokens. Normalize each text by "
            "self._model.normalize(text, where); self._normalized.split gives texts and ids again, and "
            "self._model.encode the ids of these texts. ``where`` is a text's place: START, AFTER_TOKEN, INSIDE, FRESH."
        ),
    },
    "sentencepiece_bpe": {
        "SentencePieceBPE._characters": (
            "self._vocab has the tokens. With self._ranks (a tokenizer.model), all characters stay; otherwise one "
            "without a token becomes the names of its bytes: byte_token()."
        ),
        "SentencePieceBPE._merge": (
            "self._rank gives the rank of joining two neighbours, or None. Begin with a loop that looks at every pair "
            "after each merge. It is right but slow for long texts; then keep the possible merges in a heap, and links "
            "to neighbours."
        ),
        "SentencePieceBPE.normalize": (
            "Apply each of self._steps: (pattern, replacement, whether the step adds the space)."
        ),
        "SentencePieceBPE.encode": (
            "With a scheme (not None), spaces become SPACE. One is put before a text that does not begin with it: at "
            "START unless the scheme is never, AFTER_TOKEN if it is always; at FRESH, unless it is never, even if the "
            "text begins with SPACE. With self._splits each SPACE begins a new word. A word in self._whole is one "
            "token; of others merge the _characters(). A token without an id becomes its bytes: self._byte_ids."
        ),
    },
    "contrastive": {
        "TextEmbeddings.forward": "(B, T) -> (B, T, hidden). Add the first T position embeddings.",
        "TextTower.forward": (
            "Embeddings, the encoder with a causal mask, then the hidden state at each row's first end token, after "
            "the final norm. The end token is the last of its text, so it has seen all of it."
        ),
        "contrastive_loss": (
            "Similarities times exp(scale): (n, m). Over the rows, cross-entropy with match. Over the columns the "
            "target is a distribution: each text's weight divided evenly among its pictures. Return the mean of the "
            "two."
        ),
        "Clip.text_features": "Tower, projection, then F.normalize in float32.",
        "Clip.image_features": (
            "hidden_state() is (B, 1 + patches, hidden), with the class token at 0. Class token and patches both go "
            "through post_layernorm, the projection and F.normalize, the last in float32."
        ),
        "clip_loss": "The sum of two losses: of pictures and captions, and of regions and phrases.",
    },
    "conversation": {
        "image_goes_first": (
            "hashlib.sha256 of the three numbers with spaces between them; True if the first byte is even."
        ),
        "place_image": (
            "The mark may be anywhere in the question. Put a new line between it and the words, which have no spaces "
            "around them."
        ),
        "encode_conversation": (
            "check_turns() refuses bad turns. The Template's docstring has the order of the texts; with picture_only a "
            "question is only IMAGE. place_image() is for the first question. Three stretches are "
            "encoded separately: a question with all texts around it, no loss; before_answer to stop, loss; "
            "after_stop, no loss. _runs() cuts the parts of a stretch, each (text, pattern of its marks: MARK in the "
            "template's texts, IMAGE_MARK in what somebody says), at their marks. A mark is one id, IMAGE is "
            "num_image_tokens ids, and a text between marks goes to tokenizer.encode(text, special=False, "
            "after=input_ids) as a whole. Extend labels in the same step. Last, put the bos first, without loss, if "
            "tokenizer.add_bos says so and the template has not begun with it."
        ),
    },
    "dataset": {
        "pad": "torch.full((B, longest), value, dtype=torch.long), then put each list at the beginning of its row.",
        "pad_rows": "pad() twice: ids with pad_id, labels with IGNORE. rows may be an iterator: read it once.",
        "share_rows": (
            "Sort the indices by length, the longest first; sorted() keeps the order of equal ones. A row has enough "
            "room if the sum of its lengths and the new one is at most max(lengths)."
        ),
        "ConversationDataset.collate": (
            "self._padded() takes a list of (ids, labels) and gives input_ids, labels and lengths. torch.stack the "
            "pixel_values of the examples that have some. For word_ids pad() all patches of all pictures together, "
            "then unflatten them."
        ),
        "ConversationDataset.collate_packed": (
            "share_rows() of the numbers of tokens gives groups of examples. collate() the examples in the order of "
            "the groups: its pictures are right, and its ids and labels are replaced by those of self._padded(), one "
            "row for each group. The first label of each conversation becomes IGNORE."
        ),
    },
    "llava": {
        "splice": (
            "Tensor.masked_scatter fills the positions where a mask is True, in order. Compare the counts first. "
            "Visual tokens take the embeddings' dtype."
        ),
        "next_token_loss": (
            "Position i predicts the label at i + 1. Take the states before a label that is not IGNORE, (N, hidden); "
            "apply lm_head, convert the logits to float32, then cross-entropy."
        ),
        "Llava.encode_images": (
            "Pixels take the device and dtype of the tower's weights. Call the tower with the configuration's layer "
            "and strategy. Then apply W."
        ),
        "Llava.embed": (
            "embed_tokens has a row for each word, but may have none for the placeholder's id: look up another id "
            "there. Then splice(). Without pictures all ids are words."
        ),
        "Llava.forward": "embed(), the language model; then lm_head, or next_token_loss() if there are labels.",
    },
    "generation": {
        "nucleus": (
            "Sort each row, the likeliest first. A token is kept as long as the sum of those before it is below top_p. "
            "Tensor.scatter puts the kept ones back in their places."
        ),
        "sample": "Convert the logits to float32 first. nucleus() if top_p is below 1; torch.multinomial draws.",
        "collect": (
            "done marks the rows that have drawn a stop. A row that was done before this step gets fill. Ask for no "
            "step after all rows are done. The stacked steps are (N, B): transpose them."
        ),
        "generate_ids": (
            "One cache with room for all tokens. The first pass reads the prompt, each later pass the last token "
            "drawn; the logits at the last position give the next one. attention_mask grows by a column of ones each "
            "step."
        ),
        "stream_text": (
            "An incremental UTF-8 decoder (codecs) turns each token's bytes, tokenizer.decode_bytes(), into whole "
            "characters; bytes that never become one are replaced. Skip special tokens, those in tokenizer.special. "
            "Hold back the longest end of the text that may be the beginning of the stop; yield what is before it. At "
            "the end yield the rest."
        ),
    },
    "image": {
        "to_rgb": (
            "upright() first. _to_8_bits() makes grey of 16 bits or in floats (modes I, F, I;16...) fit for "
            "convert(). If has_transparency_data, put the picture in RGBA on a white one: Image.alpha_composite."
        ),
        "ImageProcessor._resized": (
            "With shortest_edge, the longer side is shortest_edge * longer // shorter. _allowed(old, new) refuses what "
            "is too large; for a size with height and width give it (new width, the larger height): Pillow resizes "
            "rows first."
        ),
        "ImageProcessor.view": (
            "to_rgb(); then each step that its do_ field asks for: pad, resize, crop. The square has the size "
            "_padded() and the colour int(mean * 255); the picture's left edge in it is at (square width - width) // "
            "2, its top alike. The crop's left edge is at (width - crop width) // 2, which is negative in a smaller "
            "picture: Image.crop gives black there."
        ),
        "ImageProcessor.window": (
            "Per axis, as view() does it: own pixels, padded, resized, cropped. A pixel of the resized picture is "
            "padded / resized of its own pixels. The result begins (resized - cropped) // 2 resized pixels, less "
            "(padded - own) // 2 own pixels, from the picture's edge. Divide by own."
        ),
        "ImageProcessor.__call__": (
            "view(), as an array (H, W, 3); times rescale_factor; minus mean, divided by std; channels first, float32. "
            "Two of these steps have do_ fields."
        ),
    },
    "training": {
        "accumulate": (
            "First set the gradients of the step before to None. Each micro-batch's part of the loss is its mean times "
            "its weight / the sum of all weights; team.total sums over the ranks. For each: move its tensors to "
            "run.device; loss, in autocast and in hold_gradients(task.loss, whether more micro-batches follow); "
            "scaler.scale(part * team.size).backward(). The sum of the parts, over all ranks, is the result."
        ),
        "clip": (
            "scaler.unscale_ each optimizer first. The length is the root of the sum of all squares, over all "
            "parameters together. nn.utils.clip_grad_norm_ does the rest, also for gradients that are sharded."
        ),
        "update": "scaler.step() for each optimizer, then scaler.update() once.",
    },
    "schedule": {
        "schedule": (
            "The warm-up is recipe.warmup of all steps, rounded, at least one. Its step i (the first is 0) has (i + 1) "
            "/ warmup. Then 0.5 * (1 + cos(pi * x)), where x goes from 0 in the first step after it towards 1."
        ),
        "set_rate": 'optimizer.param_groups is a list of dicts: "lr" is a group\'s learning rate.',
    },
    "adamw": {
        "AdamW.__init__": (
            "Keep all arguments as attributes of their names, the parameters as a list. self.steps counts from 0; "
            "self.m1 and self.m2 hold zeros like each parameter."
        ),
        "AdamW.zero_grad": "Set each parameter's grad to None.",
        "AdamW.step": (
            "The class docstring has the formulas, in the right order. Count the step first: t is 1 in the first. All "
            "in place (-=, or mul_, add_, lerp_): parameter = ... would make another tensor, which the model does not "
            "have. Leave the gradients as they are."
        ),
    },
    "tensors": {
        "rename": (
            "Leave out names in which CONSTANTS is found. re.search finds a rule's pattern, re.sub applies the rule; "
            "only the first rule that is found. No rule: the name stays. Two tensors with one new name are an error "
            "that names both."
        ),
        "split": "Begin a new shard when the next tensor does not fit into what is left of the one before.",
        "write_tensors": (
            "The bytes of a tensor: its numbers times the itemsize of the dtype that it is written in. Write each of "
            "split()'s shards with write_file(): tensors on the CPU, detached, contiguous. If there are several files, "
            'write the index, model.safetensors.index.json: {"metadata": {"total_size": bytes of all}, "weight_map": '
            "{name: file}}."
        ),
    },
    "lora": {
        "LoraLinear.forward": "The plain layer's output plus self.scale times lora_B(lora_A(x)).",
        "LoraLinear.merged": (
            "Add in float32, then convert to W's dtype. nn.Linear on the device meta has no storage: give it a weight, "
            "an nn.Parameter, and this layer's bias."
        ),
        "add_lora": (
            "decoder.layers holds the blocks; in each, named_children() of self_attn and of mlp are linear layers. "
            "Replace each by a LoraLinear with setattr()."
        ),
        "merge_lora": "Replace every LoraLinear in the decoder by its merged().",
    },
}

# How much a body asks for. The bodies that are not here are easy: the hint is the formula.
MEDIUM = {
    "vision": ("Embeddings.forward", "Attention.forward", "VisionTower.hidden_state", "VisionTower.forward"),
    "decoder": ("rope_tables", "rotate", "KVCache.append", "visible"),
    "tokenizer": ("train_bpe", "Tokenizer.decode"),
    "sentencepiece_bpe": ("SentencePieceBPE._characters", "SentencePieceBPE.normalize"),
    "contrastive": ("TextTower.forward", "Clip.image_features", "clip_loss"),
    "dataset": ("share_rows", "ConversationDataset.collate"),
    "llava": ("splice", "next_token_loss", "Llava.embed"),
    "generation": ("nucleus", "sample", "collect"),
    "image": ("to_rgb", "ImageProcessor._resized", "ImageProcessor.view"),
    "training": ("clip",),
    "schedule": ("schedule",),
    "adamw": ("AdamW.step",),
    "tensors": ("rename",),
    "lora": ("LoraLinear.merged", "add_lora"),
}
HARD = {
    "attention": ("attend",),
    "decoder": ("rope_frequencies", "Attention.forward", "Decoder.forward"),
    "tokenizer": ("Tokenizer.encode",),
    "sentencepiece_bpe": ("SentencePieceBPE._merge", "SentencePieceBPE.encode"),
    "contrastive": ("contrastive_loss",),
    "conversation": ("encode_conversation",),
    "dataset": ("ConversationDataset.collate_packed",),
    "generation": ("generate_ids", "stream_text"),
    "image": ("ImageProcessor.window",),
    "training": ("accumulate",),
    "tensors": ("write_tensors",),
}
