"""A block-diffusion language model for transformers (4.46 or newer, 5.x included): forward pass and decoding in blocks. PyTorch only.

Written by dlm-train into folders of `export.format=fast-dllm` and `export.format=sdar`. The layers are those of Qwen2 (biases on q, k and v) or of
Qwen3 (normed q and k); what differs from those models is who sees whom: a token sees its own block of `bd_size` tokens in both directions and
everything before that block.

    model = AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)
    model(input_ids).logits                                   # block-causal, one row of logits a position
    model.generate(input_ids, max_new_tokens=256)             # greedy; [rows, longest], padded behind the end

With `token_shift` (Fast-dLLM v2) the logits at position i-1 predict token i, without it (SDAR) those at position i do.
"""

import math

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput


class BlockDiffusionConfig(PretrainedConfig):
    """Shapes under the names of Qwen2's and Qwen3's configurations; `bd_size`, `mask_token_id` and `token_shift` say how the model was trained."""

    def __init__(
        self,
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=22016,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=None,
        hidden_act="silu",
        max_position_embeddings=32768,
        initializer_range=0.02,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        rope_theta=10000.0,
        rope_scaling=None,
        bd_size=32,
        mask_token_id=None,
        token_shift=True,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.rope_theta = rope_theta
        if rope_scaling is not None:  # transformers 5 warns of the attribute
            self.rope_scaling = rope_scaling
        self.bd_size = bd_size
        self.mask_token_id = mask_token_id
        self.token_shift = token_shift
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
        if hidden_act not in ("silu", "swish"):
            raise ValueError(f"hidden_act is {hidden_act!r}; these layers have silu")


class Fast_dLLM_QwenConfig(BlockDiffusionConfig):
    """Qwen2's layers, trained with the token shift (Fast-dLLM v2)."""

    model_type = "Fast_dLLM_Qwen"

    # transformers 5 makes an __init__ of its own for a class without one
    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class SDARConfig(BlockDiffusionConfig):
    """Qwen3's layers, trained without the token shift (SDAR)."""

    model_type = "sdar"

    def __init__(self, head_dim=128, bd_size=4, mask_token_id=151669, token_shift=False, **kwargs):
        super().__init__(head_dim=head_dim, bd_size=bd_size, mask_token_id=mask_token_id, token_shift=token_shift, **kwargs)


def rotations(config, positions):
    """cos and sin `[..., head_dim / 2]` in float32 at positions `[...]`."""
    rope = getattr(config, "rope_parameters", None) or vars(config).get("rope_scaling") or {}
    rope = rope.get("full_attention", rope)
    theta = rope.get("rope_theta") or config.rope_theta
    kind = rope.get("rope_type", rope.get("type", "default"))
    half = config.head_dim // 2
    frequency = theta ** (-torch.arange(half, dtype=torch.float64, device="cpu") / half)
    if kind != "default":
        raise ValueError(f"rope type {kind!r} is not implemented; known: default")
    angle = positions[..., None].float() * frequency.to(device=positions.device, dtype=torch.float32)
    return angle.cos(), angle.sin()


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, dim = config.hidden_size, config.head_dim
        self.dim, self.group = dim, config.num_attention_heads // config.num_key_value_heads
        is_qwen3 = config.model_type == SDARConfig.model_type
        self.q_proj = nn.Linear(width, config.num_attention_heads * dim, bias=not is_qwen3)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * dim, bias=not is_qwen3)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * dim, bias=not is_qwen3)
        self.o_proj = nn.Linear(config.num_attention_heads * dim, width, bias=False)
        self.q_norm = RMSNorm(dim, config.rms_norm_eps) if is_qwen3 else nn.Identity()
        self.k_norm = RMSNorm(dim, config.rms_norm_eps) if is_qwen3 else nn.Identity()

    def forward(self, x, rotation, mask, before):
        """x `[B, S, E]`, mask `[B or 1, 1, S, K]` true where seen, before: keys and values `[B, H, K - S, D]` of the tokens in front. Returns
        the output and the keys and values of all tokens."""
        rows, length, _ = x.shape
        heads = lambda y: y.view(rows, length, -1, self.dim)  # noqa: E731
        q = rotate(self.q_norm(heads(self.q_proj(x))), rotation).transpose(1, 2)
        k = rotate(self.k_norm(heads(self.k_proj(x))), rotation).transpose(1, 2)
        v = heads(self.v_proj(x)).transpose(1, 2)
        if before is not None:
            k, v = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)
        every = lambda y: y.repeat_interleave(self.group, 1)  # noqa: E731
        y = nn.functional.scaled_dot_product_attention(q, every(k), every(v), attn_mask=mask)
        return self.o_proj(y.transpose(1, 2).reshape(rows, length, -1)), (k, v)


def rotate(x, rotation):
    """x `[B, S, H, D]`, the two halves of D as pairs."""
    cos, sin = (t[..., None, :].to(x.dtype) for t in rotation)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, rotation, mask, before):
        y, kept = self.self_attn(self.input_layernorm(x), rotation, mask, before)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), kept


class BlockDiffusionPreTrainedModel(PreTrainedModel):
    config_class = BlockDiffusionConfig
    base_model_prefix = "model"
    _no_split_modules = ["Layer"]
    _supports_sdpa = True

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data.normal_(0.0, self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                module.bias.data.zero_()
        elif isinstance(module, RMSNorm):
            module.weight.data.fill_(1.0)


class BlockDiffusionModel(BlockDiffusionPreTrainedModel):
    """Hidden states behind the last norm."""

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def set_input_embeddings(self, value):
        self.embed_tokens = value

    def run(self, input_ids, positions, mask, cache=None):
        """Hidden states of `input_ids` `[B, S]` at positions `[B or 1, S]`, and keys and values by layer: those of `cache` with the new ones
        behind them. mask `[B or 1, 1, S, K]` is true where a key is seen."""
        x, kept = self.embed_tokens(input_ids), []
        rotation = rotations(self.config, positions)
        for i, layer in enumerate(self.layers):
            x, pair = layer(x, rotation, mask, cache[i] if cache else None)
            kept.append(pair)
        return self.norm(x), kept

    def forward(self, input_ids, attention_mask=None, position_ids=None, block_size=None, **kwargs):
        refuse(kwargs, "forward", ("token_type_ids", "use_cache", "return_dict", "cache_position"))
        length = input_ids.shape[1]
        if position_ids is None:
            position_ids = torch.arange(length, device=input_ids.device)[None]
        mask = block_causal(position_ids, block_size or self.config.bd_size)
        if attention_mask is not None:
            # padding is seen by itself alone
            own = torch.eye(length, dtype=torch.bool, device=input_ids.device)
            mask = (mask & attention_mask.bool()[:, None, None, :]) | own
        return BaseModelOutput(last_hidden_state=self.run(input_ids, position_ids, mask)[0])


def block_causal(positions, block_size):
    """`[B, 1, S, S]`: a token sees its own block and those before it."""
    block = positions // block_size
    return (block[:, None, :] <= block[:, :, None])[:, None]


def refuse(given, where, harmless):
    """Arguments that change nothing here may be given; others would be ignored in silence."""
    unknown = [name for name, value in given.items() if name not in harmless and value is not None and value is not False]
    if unknown:
        raise TypeError(f"{where} does not know {', '.join(unknown)}")


class BlockDiffusionForCausalLM(BlockDiffusionPreTrainedModel):
    """The model with its output head."""

    _tied_weights_keys = (
        {"lm_head.weight": "model.embed_tokens.weight"} if int(transformers.__version__.split(".")[0]) >= 5 else ["lm_head.weight"]
    )

    def __init__(self, config):
        super().__init__(config)
        self.model = BlockDiffusionModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def set_input_embeddings(self, value):
        self.model.embed_tokens = value

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    def forward(self, input_ids, attention_mask=None, position_ids=None, block_size=None, **kwargs):
        """Logits `[B, S, V]` of clean tokens under block-causal attention; with `token_shift` those at i-1 are of token i."""
        hidden = self.model(input_ids, attention_mask, position_ids, block_size, **kwargs).last_hidden_state
        return CausalLMOutput(logits=self.lm_head(hidden))

    @torch.no_grad()
    def generate(
        self,
        input_ids,
        attention_mask=None,
        max_new_tokens=256,
        threshold=0.95,
        block_size=None,
        small_block_size=None,
        mask_id=None,
        stop_token=None,
        tokenizer=None,
        **kwargs,
    ):
        """Completes each row by itself, greedily: `[rows, longest]` with the prompts, `pad_token_id` behind the ends.

        A pass runs a block behind the cached ones. In the sub-block of `small_block_size` tokens (8 where that divides a block) every hidden
        position whose best token has a probability above `threshold` is fixed, and the surest one in any case. `stop_token`: an id or several;
        the configuration's eos_token_id unless given. With the token shift `max_new_tokens` counts whole blocks, as in Fast-dLLM v2: a
        multiple of the block size ends one token behind a block, any other number is kept to the token."""
        refuse(kwargs, "generate", ("token_type_ids", "pad_token_id", "use_cache"))
        settings = Settings(self.config, block_size, small_block_size, mask_id, stop_token, threshold)
        rows = []
        for i, row in enumerate(input_ids):
            if attention_mask is not None:
                row = row[attention_mask[i].bool()]
            rows.append(torch.tensor(self.complete(row.tolist(), max_new_tokens, settings), device=input_ids.device))
        pad = self.config.pad_token_id
        pad = settings.stops[0] if pad is None and settings.stops else (pad or 0)
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)

    def complete(self, text, max_new_tokens, settings):
        """`text` with its completion, which ends with the first stop token."""
        size, shift, mask_id = settings.block_size, settings.shift, settings.mask_id
        prompt, cache = len(text), None
        if not text or mask_id in text:
            raise ValueError("a prompt needs at least one token, and none of them may be the mask token")
        whole = prompt // size * size
        if whole:
            # nothing is predicted where the prompt goes on, and never without the token shift
            logits, cache = self.step(text[:whole], 0, None, settings)
            if whole == prompt and shift:
                text.append(settings.best(logits[-1:])[1][0])
        blocks = -(-max_new_tokens // size)
        if not shift and max_new_tokens:
            blocks = -(-(prompt % size + max_new_tokens) // size)
        for number in range(blocks):
            if settings.ends(text[prompt:]):
                break
            start, opened = len(text) // size * size, len(text)
            text += [mask_id] * (start + size - len(text))
            while mask_id in text[opened:]:
                first = text.index(mask_id, opened)
                small = start + (first - start) // settings.small * settings.small
                hidden = [at for at in range(small, small + settings.small) if text[at] == mask_id]
                logits, _ = self.step(text[start:], start, cache, settings)
                probability, token = settings.best(logits[[at - shift - start for at in hidden]])
                surest = max(range(len(hidden)), key=probability.__getitem__)
                for i, at in enumerate(hidden):
                    if i == surest or probability[i] > settings.threshold:
                        text[at] = token[i]
                if settings.ends(text[opened:]):
                    break
            if settings.ends(text[opened:]) or (number + 1 == blocks and not shift):
                break
            logits, cache = self.step(text[start:], start, cache, settings)
            if shift:
                text.append(settings.best(logits[-1:])[1][0])
        if not shift or max_new_tokens % size:
            text = text[: prompt + max_new_tokens]
        stop = next((i for i in range(prompt, len(text)) if text[i] in settings.stops), None)
        return text if stop is None else text[: stop + 1]

    def step(self, ids, start, cache, settings):
        """Logits of `ids` from position `start` on, behind `cache`; and the cache with them."""
        device = self.model.embed_tokens.weight.device
        positions = torch.arange(start, start + len(ids), device=device)[None]
        mask = block_causal(torch.arange(start + len(ids), device=device)[None], settings.block_size)[:, :, start:]
        hidden, cache = self.model.run(torch.tensor([ids], device=device), positions, mask, cache)
        return self.lm_head(hidden)[0], cache


class Settings:
    """The arguments of `generate`, checked."""

    def __init__(self, config, block_size, small, mask_id, stop, threshold):
        self.block_size = block_size or config.bd_size
        self.small = small or (8 if self.block_size % 8 == 0 else self.block_size)
        self.mask_id = config.mask_token_id if mask_id is None else mask_id
        self.shift = int(config.token_shift)
        self.threshold = threshold
        stop = config.eos_token_id if stop is None else stop
        self.stops = [] if stop is None else [stop] if isinstance(stop, int) else list(stop)
        if self.block_size % self.small:
            raise ValueError(f"sub-blocks of {self.small} tokens do not divide blocks of {self.block_size}")
        if self.mask_id is None:
            raise ValueError("the configuration names no mask_token_id; give mask_id")

    def best(self, logits):
        """Probabilities and ids of the likeliest tokens, the mask token left out."""
        logits = logits.float()
        logits[:, self.mask_id] = -math.inf
        probability, token = torch.softmax(logits, -1).max(-1)
        return probability.tolist(), token.tolist()

    def ends(self, new):
        """Whether a stop token has no hidden position before it."""
        return next((t in self.stops for t in new if t == self.mask_id or t in self.stops), False)


class Fast_dLLM_QwenModel(BlockDiffusionModel):
    config_class = Fast_dLLM_QwenConfig


class Fast_dLLM_QwenForCausalLM(BlockDiffusionForCausalLM):
    config_class = Fast_dLLM_QwenConfig


class SDARModel(BlockDiffusionModel):
    config_class = SDARConfig


class SDARForCausalLM(BlockDiffusionForCausalLM):
    config_class = SDARConfig
