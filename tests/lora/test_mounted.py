"""Batches in which each row has its own adapter, on whole models: every row as it is alone, and the bare model untouched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import load_adapters

from adapter_files import paths, write_mlx, write_peft
from optiq.errors import InputError
from optiq.kernels import native
from optiq.lora.adapters import load_adapter
from optiq.lora.mounted import Mounted
from optiq.models.caches import make_caches
from optiq.models.load import load_modules
from tiny_model import count_steps

TINY = Path(__file__).parents[2] / "examples" / "tiny-qwen3.5"


def run(model: Any, mounted: Mounted, names: list[str | None], ids: np.ndarray, steps: int = 3) -> np.ndarray:
    """Logits [steps + 1, B, V] of a prompt's last token and of single tokens after it."""
    caches, found = make_caches(model), []
    for at in range(steps + 1):
        piece = ids[:, : -steps or None] if at == 0 else ids[:, at - steps - 1 : (at - steps) or None]
        with mounted.rows(names):
            logits = model(mx.array(piece), cache=caches)[:, -1]
        found.append(np.array(logits.astype(mx.float32)))
    return np.stack(found)


@pytest.fixture(scope="module")
def mounted(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Mounted:
    """Four adapters that touch different layers, of both formats and both kinds."""
    root, found = tmp_path_factory.mktemp("adapters"), Mounted(model)
    everything = paths(model, "_proj", "in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "lm_head")
    assert len(everything) > 50
    write_peft(root / "all", model, everything, rank=4, seed=1)
    write_peft(root / "attention", model, paths(model, "q_proj", "v_proj", "in_proj_qkv"), rank=8, seed=2, use_rslora=True)
    write_mlx(root / "up", model, paths(model, "up_proj"), rank=2, seed=3)
    write_mlx(root / "dora", model, paths(model, "down_proj", "o_proj"), rank=4, seed=4, fine_tune_type="dora")
    for name in ("all", "attention", "up", "dora"):
        found.mount(name, load_adapter(root / name, model))
    return found


NAMES: list[str | None] = ["up", None, "all", "dora", None, "attention", "all"]


@pytest.mark.parametrize("length", [2, 24])
def test_every_row_has_the_bits_that_it_has_alone(model: Any, mounted: Mounted, length: int) -> None:
    ids = np.random.default_rng(length).integers(1, 4000, (len(NAMES), length + 3))
    together = run(model, mounted, NAMES, ids)
    for row, name in enumerate(NAMES):
        alone = run(model, mounted, [name], ids[row : row + 1])
        first = (
            1 if length * len(NAMES) > 16 >= length else 0
        )  # a prompt's products change over at 16 rows, of the bare model too
        np.testing.assert_array_equal(together[first:, row], alone[first:, 0], err_msg=f"row {row}, {name}")
        bare = run(model, mounted, [None], ids[row : row + 1])
        assert (name is None) == np.allclose(alone, bare, atol=1e-3)


def test_rows_without_an_adapter_have_the_bits_of_a_model_without_any(model: Any, mounted: Mounted) -> None:
    ids = np.random.default_rng(5).integers(1, 4000, (len(NAMES), 20))
    fresh = Mounted(model)  # nothing is mounted there
    bare, mixed = run(model, fresh, [None] * len(NAMES), ids), run(model, mounted, NAMES, ids)
    rows = [row for row, name in enumerate(NAMES) if name is None]
    np.testing.assert_array_equal(mixed[:, rows], bare[:, rows])
    np.testing.assert_array_equal(run(model, mounted, [None] * len(NAMES), ids), bare)


def test_a_step_without_adapters_runs_in_whole_layers(model: Any, mounted: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    if native.module() is None or not isinstance(model.layers[0].mlp.up_proj, nn.QuantizedLinear):
        pytest.skip("whole layers need native kernels and quantized weights")
    taken = count_steps(monkeypatch)
    ids = np.random.default_rng(6).integers(1, 4000, (1, 20))

    def whole(names: list[str | None]) -> list[bool]:
        taken.clear()
        run(model, mounted, names, ids)
        return taken[len(taken) - 3 * len(model.layers) :]

    assert all(whole([None]))
    built = [layer.__dict__["_built_step"].layer for layer in model.layers]
    assert not any(whole(["all"]))
    attention = whole(["attention"])
    assert not any(attention)
    assert all(whole([None]))
    assert [layer.__dict__["_built_step"].layer for layer in model.layers] == built  # and nothing was built again


def test_mlx_lm_computes_the_same(plain: Any, tmp_path: Path) -> None:
    """With its own loader and layers, for the directories that it writes."""
    ids = np.random.default_rng(7).integers(1, 4000, (1, 12))
    for kind in ("lora", "dora"):
        modules = paths(plain, "q_proj", "up_proj", "in_proj_z")
        place = write_mlx(tmp_path / kind, plain, modules, rank=4, seed=8, fine_tune_type=kind, num_layers=8)
        keys = sorted({module.partition("layers.")[2].partition(".")[2] for module in modules})
        config = (place / "adapter_config.json").read_text()
        (place / "adapter_config.json").write_text(
            config.replace('"keys": [', '"keys": [' + "".join(f'"{key}", ' for key in keys))
        )
        mounted = Mounted(plain)
        mounted.mount("theirs", load_adapter(place, plain))
        theirs, _ = load_modules(TINY)
        theirs.set_dtype(mx.float32)
        load_adapters(theirs, str(place))
        wanted = np.array(theirs(mx.array(ids)))
        with mounted.rows(["theirs"]):
            found = np.array(plain(mx.array(ids)))
        assert np.abs(found - np.array(plain(mx.array(ids)))).max() > 0.5
        np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_another_architecture(llama: Any, tmp_path: Path) -> None:
    mounted = Mounted(llama)
    mounted.mount("a", load_adapter(write_peft(tmp_path, llama, paths(llama, "_proj", "lm_head"), rank=3), llama))
    ids = mx.array(np.random.default_rng(9).integers(1, 120, (3, 9)))
    bare = np.array(llama(ids))
    with mounted.rows([None, "a", None]):
        mixed = np.array(llama(ids))
    with mounted.rows(["a"]):
        alone = np.array(llama(ids[1:2]))
    np.testing.assert_allclose(mixed[[0, 2]], bare[[0, 2]], atol=1e-6)
    np.testing.assert_allclose(mixed[1], alone[0], atol=1e-4)
    assert np.abs(mixed[1] - bare[1]).max() > 0.1


def test_mounting_and_unmounting(plain: Any, tmp_path: Path) -> None:
    mounted = Mounted(plain)
    before = dict(tree_flatten(plain.parameters()))
    place = write_peft(tmp_path / "a", plain, paths(plain, "q_proj", "k_proj"), rank=4, seed=1)
    other = write_peft(tmp_path / "b", plain, paths(plain, "k_proj"), rank=16, seed=2)
    first = load_adapter(place, plain)
    mounted.mount("a", first)
    held = mounted.nbytes
    ids = np.random.default_rng(3).integers(1, 4000, (1, 6))
    wanted = run(plain, mounted, ["a"], ids)
    mounted.mount("b", load_adapter(other, plain))
    assert mounted.names == ("a", "b") and mounted.nbytes > held and mounted.sha256("a") == first.sha256
    assert mounted.sha256("b") != mounted.sha256("a") and mounted.sha256(None) == ""
    np.testing.assert_array_equal(run(plain, mounted, ["a"], ids), wanted)
    with pytest.raises(InputError, match="an adapter 'a' is mounted already, from .*choose another name"):
        mounted.mount("a", first)
    mounted.unmount("b")
    np.testing.assert_array_equal(run(plain, mounted, ["a"], ids), wanted)
    mounted.unmount("a")
    assert mounted.names == () and mounted.nbytes == 0
    for call in (mounted.unmount, mounted.sha256, lambda name: mounted.rows([None, name])):
        with pytest.raises(InputError, match="no adapter 'a' is mounted; mounted: none"):
            call("a")
    after = dict(tree_flatten(plain.parameters()))
    assert before.keys() == after.keys() and all(after[name] is before[name] for name in before)


def test_an_error_in_a_forward_leaves_the_model_bare(plain: Any, tmp_path: Path) -> None:
    mounted = Mounted(plain)
    mounted.mount("a", load_adapter(write_peft(tmp_path, plain, paths(plain, "q_proj")), plain))
    ids = mx.array([[1, 2, 3]])
    bare = np.array(plain(ids))
    with pytest.raises(ValueError, match="adapters for 2 rows"), mounted.rows(["a", None]):
        plain(ids)
    np.testing.assert_array_equal(np.array(plain(ids)), bare)
