"""The MTP head: read from both of its places, better than chance, narrow guesses, and its errors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import random_models
from optiq.errors import ModelError
from optiq.models import layers, mtp
from optiq.models.checkpoint import Checkpoint
from optiq.models.forward import Halves
from optiq.models.load import load, load_modules
from optiq.models.mtp_head import Drafting, load_head
from optiq.quantize.encoders import ENCODERS

TEXT = (
    "The sea is the body of salt water that covers most of the surface of the Earth. People have sailed on it for thousands of "
    "years, and many of them lived from what they found in it. The first maps of the sea were made by sailors who had seen its "
    "coasts, and they were often wrong about the rest."
)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> tuple[Any, Any, Halves]:
    loaded, tokenizer = load(tiny_model)
    return loaded, tokenizer, Halves(loaded)


def _loss(drafting: Drafting, model: tuple[Any, Any, Halves]) -> tuple[float, np.ndarray]:
    """Mean nats of the token after the next one over a text, and the guesses."""
    _, tokenizer, halves = model
    ids = mx.array(tokenizer.encode(TEXT))
    hidden = halves.body(ids[None], None)
    logits = drafting.logits(drafting(hidden[:, :-2], ids[None, 1:-1], drafting.make_caches()))[0].astype(mx.float32)
    shares = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return -float(mx.take_along_axis(shares, ids[2:, None], 1).mean()), np.array(logits)


def test_the_head_guesses_what_it_was_trained_to(tiny_model: Path, model: tuple[Any, Any, Halves]) -> None:
    found, logits = _loss(Drafting(load_head(tiny_model, model[0]), model[2]), model)
    assert found < 4.5 < np.log(logits.shape[-1]) - 2  # 3.45 on its own text; 8.3 by chance


def test_the_side_file_is_the_same_head_in_codes(tiny_model: Path, tmp_path: Path, model: tuple[Any, Any, Halves]) -> None:
    whole, logits = _loss(Drafting(load_head(tiny_model, model[0]), model[2]), model)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_model / name, tmp_path)
    _strip(tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"no MTP head \(mtp.safetensors, or tensors mtp\.\*\)"):
        load_head(tmp_path, model[0])

    def encode(weight: mx.array, bits: int, group_size: int, dtype: mx.Dtype) -> Any:
        return ENCODERS["rtn"](weight, bits, group_size, dtype)

    mtp.write(Checkpoint.open(tiny_model), tmp_path, encode)
    coded, others = _loss(Drafting(load_head(tmp_path, model[0]), model[2]), model)
    assert coded < whole + 0.2 and not np.array_equal(logits, others)
    assert np.mean(logits.argmax(-1) == others.argmax(-1)) > 0.7


def _strip(path: Path) -> None:
    tensors = {name: value for name, value in mx.load(str(path)).items() if not name.startswith("mtp.")}  # type: ignore[union-attr]
    mx.save_safetensors(str(path), tensors, metadata={"format": "mlx"})


@pytest.mark.parametrize("coded", [False, True])
def test_a_narrow_head_has_the_first_logits(coded: bool, tiny_model: Path) -> None:
    import mlx.nn as nn

    loaded, _ = load_modules(tiny_model)
    if coded:
        nn.quantize(loaded, 64, 4, class_predicate=lambda _, layer: hasattr(layer, "to_quantized"))
        layers.use_kernels(loaded)
    halves = Halves(loaded)
    head = load_head(tiny_model, loaded)
    wide, narrow = Drafting(head, halves), Drafting(head, halves, 1000)
    hidden = mx.random.normal((1, 3, loaded.language_model.args.hidden_size)).astype(mx.bfloat16)
    assert narrow.logits(hidden).shape == (1, 3, 1000) and narrow.vocabulary == 1000
    np.testing.assert_array_equal(
        np.array(narrow.logits(hidden).astype(mx.float32)), np.array(wide.logits(hidden)[..., :1000].astype(mx.float32))
    )


def test_guesses_one_by_one_are_those_of_a_text(tiny_model: Path, model: tuple[Any, Any, Halves]) -> None:
    """The head's own cache: a text in pieces gives what it gives at once."""
    _, tokenizer, halves = model
    ids = mx.array(tokenizer.encode(TEXT)[:12])
    hidden = halves.body(ids[None], None)[:, :-1]
    drafting = Drafting(load_head(tiny_model, model[0]), halves)
    whole = drafting(hidden, ids[None, 1:], drafting.make_caches())
    caches = drafting.make_caches()
    parts = [drafting(hidden[:, i : i + 1], ids[None, i + 1 : i + 2], caches) for i in range(11)]
    np.testing.assert_allclose(
        np.array(mx.concatenate(parts, 1).astype(mx.float32)), np.array(whole.astype(mx.float32)), atol=0.05, rtol=0.05
    )


def test_errors(tiny_model: Path, tmp_path: Path, model: tuple[Any, Any, Halves]) -> None:
    other = random_models.write(tmp_path / "llama", "llama")
    llama, _ = load_modules(other)
    with pytest.raises(ModelError, match="no MTP head"):
        load_head(other, llama)
    shutil.copytree(tiny_model, tmp_path / "broken")
    (tmp_path / "broken" / mtp.FILE).write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="mtp.safetensors: cannot be read as safetensors"):
        load_head(tmp_path / "broken", model[0])
    mx.save_safetensors(str(tmp_path / "broken" / mtp.FILE), {"mtp.norm.weight": mx.zeros((256,))})
    with pytest.raises(ModelError, match="the MTP head does not fit the model"):
        load_head(tmp_path / "broken", model[0])
    mx.save_safetensors(str(tmp_path / "broken" / mtp.FILE), {"mtp.layers.0.mlp.experts.0.up_proj.weight": mx.zeros((2, 2))})
    with pytest.raises(ModelError, match="expected a dense qwen3_5"):
        load_head(tmp_path / "broken", model[0])
