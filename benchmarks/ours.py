"""Our side of a comparison: token sets, conversions and measurements kept by what they depend on, the round trip.

In: the embedded model and options of `optiq convert`. Out: model directories and per-token KL below `build/quality`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import harness
import mlx.core as mx
import numpy as np
from harness import Bar
from referee import dense_float32

from optiq.measure import divergence as measure
from optiq.measure.text import samples
from optiq.measure.tokens import Tokens, tokenise
from optiq.models.chat import load_tokenizer
from optiq.models.checkpoint import Checkpoint
from optiq.models.stream import Stream

WORK = harness.BUILD / "quality"
LENGTH = 512
CALIBRATION = ("--calibration-samples", 16)  # rows per domain: the default, 40, takes this script over an hour on 2 cores
LOGIT_TOLERANCE = 1e-3  # float32 sums in another order over 12 layers
MEASURING = ("measure", "models", "kernels")  # the sources on which a measured KL depends
CONVERTING = (*MEASURING, "plan", "quantize", "files.py", "cli/convert.py")


def sources_digest(parts: tuple[str, ...]) -> str:
    """SHA-256 of some files and folders of the package."""
    root = harness.ROOT / "src" / "optiq"
    found: list[Path] = []
    for part in parts:
        found += [root / part] if part.endswith(".py") else (root / part).rglob("*")
    return harness.digest(path for path in found if path.is_file() and "__pycache__" not in path.parts)


def token_set(name: str, rows: int) -> Tokens:
    """One of the packaged sets as the embedded model reads it: at most `rows` rows of 512 tokens per domain."""
    return tokenise(samples(name), load_tokenizer(harness.MODEL), LENGTH, rows, name)


def stages() -> Path:
    """The directory of stage files that all conversions share, made anew when the sources of any stage change.

    Statistics depend on fewer sources than the rest; those that still hold are taken along.
    """
    measuring, converting = sources_digest(MEASURING)[:12], sources_digest(CONVERTING)[:12]
    folder = WORK / "stages" / f"{measuring}-{converting}"
    if not folder.exists():
        old = sorted((WORK / "stages").glob(f"{measuring}-*"))
        folder.mkdir(parents=True)
        for kept in old[-1].glob("statistics-*") if old else ():
            shutil.copytree(kept, folder / kept.name)
        for stale in (WORK / "stages").iterdir():
            if stale != folder:
                shutil.rmtree(stale)
    return folder


def convert(name: str, *options: object) -> Path:
    """`optiq convert` into `build/quality/NAME`, unless that is there from the same model, sources and options."""
    out, record = WORK / name, WORK / f"{name}.json"
    words = [str(word) for word in (*CALIBRATION, *options)]
    asked = {
        "model": harness.model_digest(harness.MODEL),
        "sources": sources_digest(CONVERTING),
        "options": words,
        "directories": [harness.model_digest(Path(word)) for word in words if Path(word).is_dir()],
    }
    if out.exists() and record.exists() and json.loads(record.read_text())["asked"] == asked:
        return out
    shutil.rmtree(out, ignore_errors=True)
    command = harness.command("convert", harness.MODEL, *words, "--no-verify", "--work", stages(), "-o", out)
    done = harness.run(["nice", *command], WORK / "logs" / f"{name}.log")
    record.write_text(json.dumps({"asked": asked, "seconds": round(done.seconds, 1)}, indent=1) + "\n")
    return out


def divergence(candidate: Path, tokens: Tokens) -> measure.Divergence:
    """KL(embedded model || candidate) of each token, kept by the hashes of everything that it depends on."""
    models = [harness.model_digest(harness.MODEL), harness.model_digest(candidate)]
    key = json.dumps([*models, tokens.sha256, tokens.ids.shape, sources_digest(MEASURING)])
    path = WORK / "kl" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
    if path.exists():
        kept = np.load(path)
        return measure.Divergence(kept["kl"], tuple(kept["tops"]), tuple(kept["losses"]), tokens.domains)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept_reference = WORK / "kl" / sources_digest(MEASURING)[:16]
    found = measure.divergence(harness.MODEL, candidate, tokens, work=kept_reference)
    np.savez_compressed(path, kl=found.kl, tops=found.tops, losses=found.losses)
    return found


def predicted(model_dir: Path) -> float:
    """The KL that the plan predicts, in nats per token."""
    return float(json.loads((model_dir / "optiq" / "plan.json").read_text())["predicted_kl"])


def round_trip(model_dir: Path, ids: np.ndarray) -> Bar:
    """The largest difference between logits of a saved model, ours and stock mlx-lm's, both in dense float32.

    Ours runs the chunked form of Gated DeltaNet, stock mlx-lm the recurrence: sums in another order.
    """
    stream = Stream(Checkpoint.open(model_dir))
    tokens = mx.array(ids)
    hidden = stream.front(tokens)
    for i in range(stream.depth):
        stream.load_block(i)
        hidden = stream.block(i, hidden)
    mine, stock = stream.tail(hidden, tokens), dense_float32(model_dir)(tokens)
    return Bar(
        id="1.round_trip",
        what="largest difference of a logit of the saved model, stock mlx-lm against ours",
        figure=float(mx.abs(mine - stock).max()),
        unit="",
        bar=LOGIT_TOLERANCE,
        direction="<=",
        baseline=f"logits up to {float(mx.abs(stock).max()):.1f}, float32 on both sides",
    )
