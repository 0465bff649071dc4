"""Encoders: ways to turn a weight into affine codes, one file each, in the table `ENCODERS`.

All of them write the plain MLX affine format. What they minimise is, per row w with error d, d gram d^T (see
`optiq.measure.moments`); `rtn` looks at the weight alone, `search` at the diagonal of `gram`, `gptq` at all of it.
"""

from __future__ import annotations

from optiq.quantize.encoders.gptq import gptq
from optiq.quantize.encoders.rtn import rtn
from optiq.quantize.encoders.search import search
from optiq.registry import Table

ENCODERS: Table = Table("encoder")
ENCODERS.add("rtn", rtn)
ENCODERS.add("search", search)
ENCODERS.add("gptq", gptq)
