"""Stock mlx-lm conversions, for comparison: what a user would get without this project."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from optiq.errors import ModelError


def uniform(source: Path, out: Path, bits: int, group_size: int) -> None:
    """Write the uniform model of `mlx_lm.convert`.

    Raises:
        ModelError: mlx-lm cannot convert this model.
    """
    from mlx_lm import convert

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            convert(str(source), str(out), quantize=True, q_bits=bits, q_group_size=group_size)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise ModelError(f"{source}: stock mlx-lm cannot write a uniform {bits}-bit model of it ({reason}).") from error


def mlx_lm_version() -> str:
    """The version of the installed mlx-lm."""
    from mlx_lm import __version__

    return str(__version__)
