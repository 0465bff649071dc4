"""Pictures: the right format, whole or absent, the same SVG for the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from optiq.errors import InputError
from optiq.quantize import picture

pytest.importorskip("matplotlib")

DEPTH: dict[str, dict[int | None, int]] = {
    "embed_tokens": {None: 8},
    "q_proj": {0: 4, 1: 2, 2: 3},
    "gate_proj": {0: 5, 2: 6},
    "odd": {1: 16},
}
KINDS = [("embedding", 8, 5_000), ("linear", 4, 70_000), ("linear", 8, 10_000), ("norm", 16, 100)]
POINTS = [
    picture.Point("uniform 4", 5_000_000, 0.06, 0.055, 0.065, "stock uniform"),
    picture.Point("uniform 6", 7_000_000, 0.01, None, None, "stock uniform"),
    picture.Point("", 5_000_000, 0.02, 0.018, 0.023, "optiq"),
    picture.Point("", 7_000_000, 0.004, 0.003, 0.005, "optiq"),
]


def draw(path: Path, which: str) -> None:
    if which == "inspection":
        picture.inspection(path, DEPTH, KINDS, "a model")
    elif which == "depth":
        picture.bits_over_depth(path, DEPTH, "a model")
    elif which == "pareto":
        picture.pareto(path, [(2.5, 1.0), (4.0, 0.1), (8.0, 0.0)], "a curve", [("this plan", 4.0, 0.1)])
    else:
        picture.kl_over_bytes(path, POINTS, "a comparison", join=("optiq",))


@pytest.mark.parametrize("which", ["inspection", "depth", "pareto", "comparison"])
@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_writes_the_format_of_the_ending(tmp_path: Path, which: str, suffix: str, magic: bytes) -> None:
    path = tmp_path / f"picture{suffix}"
    draw(path, which)
    data = path.read_bytes()
    assert data.startswith(magic) and len(data) > 5000
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_same_numbers_same_svg(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        draw(tmp_path / name, "comparison")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_unknown_ending_is_refused_before_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"its ending is \.gif, expected one of \.png, \.svg, \.pdf"):
        draw(tmp_path / "a.gif", "inspection")
    with pytest.raises(InputError, match="its ending is missing"):
        picture.check_format(tmp_path / "a")


def test_deep_models_and_empty_ones_draw(tmp_path: Path) -> None:
    deep: dict[str, dict[int | None, int]] = {"q_proj": {layer: 2 + layer % 3 for layer in range(80)}}
    picture.bits_over_depth(tmp_path / "deep.png", deep, "80 layers")
    picture.inspection(tmp_path / "none.png", {}, [], "nothing quantizable")
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("deep.png", "none.png"))


def test_comparison_needs_a_point_above_zero(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of 1 points has a divergence above 0"):
        picture.kl_over_bytes(tmp_path / "a.png", [picture.Point("x", 1, 0.0, None, None, "s")], "t")
