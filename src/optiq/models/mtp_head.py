"""The multi-token-prediction head beside a loaded model: from a hidden state and the token after it to a guess at the next.

    x_i = W_fc [norm_e(embed(t_{i+1})) ; norm_h(h_i)]        h_i: the model's hidden state at position i, after its final norm
    g_i = norm(block(x_0 .. x_i))                            one attention block with its own key/value cache
    logits of t_{i+2} = the model's head of g_i

Embedding and head are the model's own. Further tokens are guessed by feeding g_i in the place of the hidden state that is not
there yet. With `vocabulary` the guess is among the first token ids alone: a byte-level tokenizer numbers its tokens in the order
in which it merged them, so those are the frequent ones, and the rows of the head are a slice.

Read from the side file that `optiq.models.mtp` writes, or from the `mtp.*` tensors of an unquantized checkpoint. Knows Qwen3.5's
dense head; knows no sampling. Source: Qwen3-Next's multi-token prediction as vLLM and transformers compute it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from optiq.errors import ModelError
from optiq.kernels.dense import dense
from optiq.kernels.quantized import quantized_matmul
from optiq.models import arch, layers
from optiq.models.caches import Caches, growing_cache
from optiq.models.checkpoint import Checkpoint
from optiq.models.forward import Halves
from optiq.models.mtp import FILE, FILES, PREFIX

VOCABULARY = 32768  # token ids to guess among: a quarter of a step's time becomes a thirtieth where there are 248,320
_FAMILY = "qwen3_5"


class Head(nn.Module):
    """The head's modules; `draft` is what it is for.

    Args:
        args: of the model's text part, as mlx-lm reads them.
        depth: number of blocks.
    """

    def __init__(self, args: Any, depth: int) -> None:
        super().__init__()
        width = args.hidden_size
        block = arch.shared(_FAMILY).DecoderLayer
        self.pre_fc_norm_embedding = nn.RMSNorm(width, eps=args.rms_norm_eps)
        self.pre_fc_norm_hidden = nn.RMSNorm(width, eps=args.rms_norm_eps)
        self.fc = nn.Linear(2 * width, width, bias=False)
        self.layers = [block(args, layer_idx=args.full_attention_interval - 1) for _ in range(depth)]
        self.norm = nn.RMSNorm(width, eps=args.rms_norm_eps)


class Drafting:
    """A head joined to its model.

    Args:
        head: as `load_head` gives it.
        halves: the model that it was trained with.
        vocabulary: guess among so many first token ids; None: all.

    Attributes:
        width: of the model's logits.
        token_bytes: what the head's caches take per token.

    Raises:
        ModelError: the model is in one piece, so there are no hidden states.
    """

    def __init__(self, head: Head, halves: Halves, vocabulary: int | None = None) -> None:
        if halves.whole or halves.trunk is None or halves.owner is None:
            raise ModelError("the model gives no hidden states, which an MTP head needs; generate without --mtp")
        self._head, self._halves, self._embed = head, halves, halves.trunk.embed_tokens
        self._projection = halves.owner.get("lm_head", self._embed)
        self.width = width = self._projection["weight"].shape[0]
        self.vocabulary = width if vocabulary is None else min(vocabulary, width)
        self._rows: list[mx.array] = []  # of the projection, where guesses are among its first ones alone
        if self.vocabulary < width and "bias" not in self._projection:
            names = ("weight", "scales", "biases") if "scales" in self._projection else ("weight",)
            self._rows = [self._projection[name][: self.vocabulary] for name in names]
            mx.eval(self._rows)  # views: kernels read them where they lie

        attentions = [block.self_attn for block in head.layers]
        self.token_bytes = float(sum(2 * at.num_key_value_heads * at.head_dim * head.norm.weight.itemsize for at in attentions))

    def make_caches(self) -> Caches:
        """Fresh caches of the head's blocks."""
        return [growing_cache() for _ in self._head.layers]

    def __call__(self, hidden: mx.array, tokens: mx.array, caches: Caches) -> mx.array:
        """Hidden states that stand for the tokens after these.

        Args:
            hidden: [B, L, E], the model's or the head's own.
            tokens: [B, L], each the one after its hidden state's position.
            caches: of the head; they move on by L.

        Returns:
            [B, L, E].
        """
        head = self._head
        x = mx.concatenate([head.pre_fc_norm_embedding(self._embed(tokens)), head.pre_fc_norm_hidden(hidden)], -1)
        x = head.fc(x)
        mask = arch.shared("base").create_attention_mask(x, caches[0])
        for block, cache in zip(head.layers, caches, strict=True):
            x = block(x, mask=mask, cache=cache)
        return head.norm(x)

    def logits(self, hidden: mx.array) -> mx.array:
        """The head's hidden states [B, L, E] to logits [B, L, vocabulary]."""
        if not self._rows:
            return self._halves.head(hidden)
        if len(self._rows) == 1:
            return dense(hidden, self._rows[0])
        weight, scales, biases = self._rows
        return quantized_matmul(
            hidden, weight, scales, biases, group_size=self._projection.group_size, bits=self._projection.bits
        )

    def draft(self, hidden: mx.array, token: mx.array, caches: Caches) -> tuple[mx.array, mx.array]:
        """One guess: logits [B, L, vocabulary] of the token after `token` [B, L], and the hidden state for the next guess."""
        hidden = self(hidden, token, caches)
        return self.logits(hidden[:, -1:]), hidden[:, -1:]


def load_head(path: Path, model: Any) -> Head:
    """The head that lies in a model directory.

    Args:
        path: the directory that `model` was loaded from.
        model: as `optiq.models.load` gives it.

    Raises:
        ModelError: there is no head, or one of another kind.
    """
    checkpoint = Checkpoint.open(path)
    tensors = _tensors(path, checkpoint)
    if not tensors:
        raise ModelError(
            f"{path}: no MTP head ({FILE}, or tensors {PREFIX}*); convert a checkpoint that has one, or leave --mtp out."
        )
    args = getattr(getattr(model, "language_model", None), "args", None)
    depth = len({name.split(".")[1] for name in tensors if name.startswith("layers.")})
    if type(model).__module__ != f"{arch.PACKAGE}.{_FAMILY}" or any(".experts." in name for name in tensors):
        kind = checkpoint.config.get("model_type")
        raise ModelError(
            f"{path}: the MTP head of {kind!r} is of a kind that is not known, expected a dense {_FAMILY}; leave --mtp out."
        )
    head = Head(args, depth)
    bits = {name.removesuffix(".scales") for name in tensors if name.endswith(".scales")}
    nn.quantize(head, class_predicate=lambda name, module: _coding(tensors, name, module) if name in bits else False)
    try:
        head.load_weights(list(_shifted(tensors).items()))
    except ValueError as error:
        raise ModelError(f"{path}: the MTP head does not fit the model ({error}); convert it again.") from None
    head.eval()
    layers.use_kernels(head)
    mx.eval(head.parameters())
    return head


def _tensors(path: Path, checkpoint: Checkpoint) -> dict[str, mx.array]:
    """The head's tensors without their prefix: the side file's, else the checkpoint's own."""
    for name in FILES:
        if (path / name).is_file():
            try:
                found: dict[str, mx.array] = mx.load(str(path / name))  # type: ignore[assignment]
            except RuntimeError as error:
                raise ModelError(f"{path / name}: cannot be read as safetensors ({error}); convert the model again.") from error
            return {key.removeprefix(PREFIX): value for key, value in found.items()}
    if not any(name.startswith(PREFIX) for name in checkpoint.headers):
        return {}
    return {key.removeprefix(PREFIX): value for key, value in checkpoint.raw().items() if key.startswith(PREFIX)}


def _coding(tensors: dict[str, mx.array], name: str, module: Any) -> dict[str, int]:
    """Group size and bits of a coded weight, which its shapes say."""
    width = module["weight"].shape[-1]
    codes, scales = tensors[f"{name}.weight"], tensors[f"{name}.scales"]
    return {"group_size": width // scales.shape[-1], "bits": codes.shape[-1] * 32 // width}


def _shifted(tensors: dict[str, mx.array]) -> dict[str, mx.array]:
    """Checkpoints store norm weights less one; files of other tools may have them as they are used, about one."""
    norms = [name for name, value in tensors.items() if value.ndim == 1]
    entry = [name for name in norms if "pre_fc_norm" in name or "input_layernorm" in name]
    mean = sum(tensors[name].astype(mx.float32).mean().item() for name in entry) / max(1, len(entry))
    if mean > 0.5:
        return tensors
    return tensors | {name: (tensors[name].astype(mx.float32) + 1).astype(tensors[name].dtype) for name in norms}
