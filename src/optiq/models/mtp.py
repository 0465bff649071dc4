"""The multi-token-prediction head that a checkpoint carries beside the model, written as the side file `mtp.safetensors`.

Names stay as the checkpoint has them (`mtp.*`). Projections are stored as affine codes, `mtp.fc` and norms in 16
bits. Stock loaders ignore the file (they read `model*.safetensors`), so a result loads everywhere; the entries added
to config.json tell readers of the file how it is coded. Layout and config keys: reference notes, "MTP sidecar".
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

from optiq.kernels.affine import Coded
from optiq.models.checkpoint import Checkpoint
from optiq.models.save import write_safetensors

FILE = "mtp.safetensors"
FILES = (f"optiq/{FILE}", FILE, "mtp/weights.safetensors", "model-mtp.safetensors")  # where side files have been seen
PREFIX = "mtp."
BITS = 4
GROUP_SIZE = 64

Encode = Callable[[mx.array, int, int, mx.Dtype], Coded]


def names(checkpoint: Checkpoint) -> list[str]:
    """The head's tensors in the checkpoint; none where it has no head."""
    return sorted(name for name in checkpoint.headers if name.startswith(PREFIX))


def write(checkpoint: Checkpoint, out: Path, encode: Encode) -> dict[str, Any]:
    """Write the side file into `out`.

    Args:
        encode: (weight, bits, group size, dtype) -> codes.

    Returns:
        The entries for config.json; none where the checkpoint has no head.
    """
    found = names(checkpoint)
    if not found:
        return {}
    raw = checkpoint.raw()
    arrays: dict[str, mx.array] = {}
    for name in found:
        value = raw[name]
        if not _projection(name, value):
            arrays[name] = value.astype(checkpoint.dtype)
            continue
        coded = encode(value.astype(mx.float32), BITS, GROUP_SIZE, checkpoint.dtype)
        path = name.removesuffix(".weight")
        arrays[name] = coded.words()
        arrays[f"{path}.scales"] = coded.scales.astype(checkpoint.dtype)
        arrays[f"{path}.biases"] = coded.biases.astype(checkpoint.dtype)
    mx.eval(list(arrays.values()))
    write_safetensors(out / FILE, arrays, {"format": "mlx"})
    layers = checkpoint.text_config.get("mtp_num_hidden_layers", 1)
    return {
        "mtp_file": FILE,
        "mtp_tensor_count": len(arrays),
        "mtp_policy": f"optiq-int{BITS}-prequantized-gs{GROUP_SIZE}",
        "mtplx_mtp_quantization": {
            "bits": BITS,
            "group_size": GROUP_SIZE,
            "mode": "affine",
            "policy": "cyankiwi",
            "prequantized": True,
        },
        "mlx_lm_extra_tensors": {"mtp_file": FILE},
        "mtp_num_hidden_layers": layers,
    }


def carry(checkpoint: Checkpoint, out: Path) -> dict[str, Any]:
    """Bring the head along into another directory: a side file as it is, else the checkpoint's own tensors as they are.

    Returns:
        The entries for config.json; none where the source's config has them, or there is no head.
    """
    for name in FILES:
        if (checkpoint.path / name).is_file():
            (out / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(checkpoint.path / name, out / name)
            return {}
    found = names(checkpoint)
    if not found:
        return {}
    raw = checkpoint.raw()
    write_safetensors(out / FILE, {name: raw[name] for name in found}, {"format": "mlx"})
    return {"mtp_file": FILE, "mtp_tensor_count": len(found), "mlx_lm_extra_tensors": {"mtp_file": FILE}}


def _projection(name: str, value: mx.array) -> bool:
    """Matrices except the one that joins hidden state and embedding, which stays in 16 bits."""
    return name.endswith(".weight") and value.ndim >= 2 and value.shape[-1] % GROUP_SIZE == 0 and name != f"{PREFIX}fc.weight"
