"""Comparisons: nothing between a model and itself, a coarser one by token, where texts part, which answers flip."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from answers import Scripted
from optiq.cli.compare import labels, text
from optiq.errors import InputError
from optiq.evals import run as runs
from optiq.evals.comparison import Comparison, Settings, compare, document_tokens
from optiq.evals.data import Data
from optiq.evals.earlier import Kept, flips
from optiq.evals.partings import conversations, parting
from optiq.evals.task import Answer
from optiq.evals.tasks.hashhop import HashHop
from optiq.measure.divergence import divergence
from optiq.models.checkpoint import Checkpoint
from optiq.quantize.workspace import model_key

SETTINGS = Settings(length=24, rows=1, texts=2, max_tokens=12, results=Path("/nowhere"))


@pytest.fixture(scope="module")
def coarse(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with its matrices rounded to three bits."""
    place = shutil.copytree(tiny_model, tmp_path_factory.mktemp("models") / "coarse")
    file = place / "model.safetensors"
    weights = mx.load(str(file))
    assert isinstance(weights, dict)
    for name, value in weights.items():
        if value.ndim == 2 and value.shape[-1] % 64 == 0:
            weights[name] = mx.dequantize(*mx.quantize(value, 64, 3), 64, 3)
    mx.eval(weights)
    mx.save_safetensors(str(file), weights, {"format": "mlx"})
    return place


@pytest.fixture(scope="module")
def found(tiny_model: Path, coarse: Path) -> Comparison:
    return compare(("whole", tiny_model), [("itself", tiny_model), ("coarse", coarse)], SETTINGS)


def test_a_model_beside_itself_and_a_coarser_one(found: Comparison, tiny_model: Path, coarse: Path) -> None:
    itself, other = found.sides
    assert itself.far.kl.max() < 1e-6 and itself.far.same.all() and [one.at for one in itself.partings] == [None, None]
    again = divergence(tiny_model, coarse, document_tokens(tiny_model, SETTINGS))
    assert np.array_equal(other.far.kl, again.kl) and other.far.mean > 1e-3
    assert other.about.file_bytes == (coarse / "model.safetensors").stat().st_size
    assert len(other.partings) == 2 and any(one.at is not None for one in other.partings)
    for one in other.partings:
        assert one.at is None or all(one.texts[side].endswith(one.rest[side]) for side in (0, 1))


def test_the_json_has_every_token_with_its_figures(found: Comparison) -> None:
    data = json.loads(json.dumps(found.as_json(per_token=True)))
    documents, length = found.tokens.ids.shape
    tokens, coarse = data["tokens"], data["models"][1]
    assert len(tokens["texts"]) == documents == 6 and {len(row) for row in tokens["texts"]} == {length} == {24}
    assert np.mean(tokens["models"][1]["kl"]) == pytest.approx(coarse["kl"]["mean"], rel=1e-4)
    assert np.exp(np.mean(tokens["models"][1]["loss"])) == pytest.approx(coarse["perplexity"], rel=1e-4)
    assert np.exp(np.mean(tokens["reference"]["loss"])) == pytest.approx(data["reference"]["perplexity"], rel=1e-4)
    same = np.array(tokens["reference"]["likeliest"]) == np.array(tokens["models"][1]["likeliest"])
    assert same.mean() == pytest.approx(coarse["kl"]["top1"], abs=0.02)  # different ids may have the same text
    assert "tokens" not in found.as_json(per_token=False)
    shown = text(found, per_token=True)
    assert "prompt 2: " in shown and "itself: the same text" in shown and "coarse, where it is furthest" in shown


def test_where_texts_part() -> None:
    def decode(ids: list[int]) -> str:
        return "".join(map(str, ids))

    one = parting("p", [1, 2, 3], [1, 4, 3], decode)
    assert (one.at, one.texts, one.rest) == (1, ("123", "143"), ("23", "43"))
    assert parting("p", [1, 2], [1, 2], decode).at is None
    assert parting("p", [1, 2, 3], [1, 2], decode).rest == ("3", "")


def test_prompts_are_own_ones_or_held_out_instructions_up_to_the_first_reply() -> None:
    assert conversations(("a", "b"), 4) == [({"role": "user", "content": "a"},), ({"role": "user", "content": "b"},)]
    held_out = conversations((), 5)
    assert len(held_out) == 5 and all(chat[-1]["role"] == "user" for chat in held_out) and held_out[4][0]["role"] == "system"
    assert conversations((), 0) == []


def test_answers_of_earlier_runs_flip(tiny_model: Path, coarse: Path, tmp_path: Path) -> None:
    def run(model: Path, place: str, right: set[int], **about: object) -> None:
        keyed = {"model": model_key(Checkpoint.open(model)), **about}
        task = HashHop(count=4, characters=200)
        ids = [sample.id for sample in task.samples(Data())]
        say = Scripted(lambda sample: Answer(sample.gold["end"] if ids.index(sample.id) in right else ""))
        runs.run(task, Data(), say, tmp_path / place, keyed)

    run(tiny_model, "a", {0, 1, 2})
    run(tiny_model, "thinking", {0, 1, 2, 3}, thinking=True)
    run(coarse, "b", {0, 3})
    (tmp_path / "other.jsonl").write_text("{}\n")
    kept = Kept(tmp_path)
    pair = flips(kept.of(coarse), kept.of(tiny_model))["hashhop"]
    assert pair.gained == ("hashhop/4/0",) and pair.lost == ("hashhop/2/0", "hashhop/3/0") and pair.word == "no difference shown"
    assert flips(kept.of(coarse), {}) == {} and flips(kept.of(tiny_model), kept.of(tiny_model)) == {}


def test_own_text_may_be_short(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "note.txt"
    file.write_text("The sea is wide, and the boat is small.")
    tokens = document_tokens(tiny_model, Settings(file=file))
    assert tokens.ids.shape[0] == 1 and 5 < tokens.ids.shape[1] < 40 and tokens.domains == ("custom",)
    assert document_tokens(tiny_model, Settings(file=file, length=4)).ids.shape == (1, 4)
    file.write_text(" \n")
    with pytest.raises(InputError, match="is empty, expected a text"):
        document_tokens(tiny_model, Settings(file=file))
    with pytest.raises(InputError, match="cannot be read as UTF-8 text"):
        document_tokens(tiny_model, Settings(file=tmp_path / "absent.txt"))


def test_labels_tell_models_apart(tmp_path: Path) -> None:
    names = [str(tmp_path / "a" / "m"), str(tmp_path / "b" / "m"), str(tmp_path / "b"), "owner/name"]
    for name in names[:3]:
        Path(name).mkdir(parents=True, exist_ok=True)
    assert labels(names) == [names[0], names[1], "b", "owner/name"]
