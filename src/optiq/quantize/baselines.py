"""Stock uniform models of the nearest sizes beside the result, measured on the same text."""

from __future__ import annotations

from typing import Any

from optiq import files
from optiq.errors import ModelError
from optiq.models import stock
from optiq.models.inspect import inspect
from optiq.models.places import replaceable
from optiq.quantize import stages
from optiq.quantize.stages import Job

WIDTHS = (2, 3, 4, 5, 6, 8)
GROUP_SIZE = 64


def compare(job: Job, bpw: float) -> list[dict[str, Any]]:
    """The uniform models below and above a size: written beside the output, measured on the score text.

    Returns:
        Rows of plan.json's `baselines`: name, bytes, bpw, mean KL and its interval; none for a model that stock mlx-lm
        cannot convert (one without a tokenizer, for instance), with a warning.
    """
    assert job.text is not None
    rows = []
    for bits in nearest(bpw):
        name = f"{job.settings.output.name}-uniform-{bits}bit"
        out = job.settings.output.absolute().parent / name
        if out.exists() and not replaceable(out):
            job.events.warn(f"{name}: left out, {out} is there and is no model directory")
            continue
        try:
            with job.events.stage(f"baseline {name}"), files.building(out, overwrite=True) as whole:
                stock.uniform(job.source.path, whole / "model", bits, GROUP_SIZE)
                for file in list((whole / "model").iterdir()):
                    file.rename(whole / file.name)
                (whole / "model").rmdir()
        except ModelError as error:  # the result itself is whole: only the comparison is missing
            job.events.warn(f"{name}: left out, {error}")
            continue
        figures = stages.measure(job, out, job.text.score).summary()
        size = inspect(out)
        rows.append(
            {
                "name": name,
                "bytes": sum(file.stat().st_size for file in out.glob("model*.safetensors")),
                "bpw": size.bpw,
                "kl_mean": figures["mean"],
                "ci95": figures["ci95"],
            }
        )
    return rows


def nearest(bpw: float) -> list[int]:
    """The widths whose uniform models (half a bit for scales and biases) are just below and above a size."""
    sizes = {bits: bits + 32 / GROUP_SIZE for bits in WIDTHS}
    below = [bits for bits, size in sizes.items() if size <= bpw]
    above = [bits for bits, size in sizes.items() if size > bpw]
    return [*below[-1:], *above[:1]]
