"""Imports point downward, and mlx_lm has one importer."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "optiq"

# Rank by first folder or file below src/optiq; equal ranks never import each other.
ORDER = [
    ["__main__"],
    ["cli"],
    ["lab"],
    ["evals"],
    ["serve"],
    ["generate"],
    ["lora", "kv", "quantize"],
    ["measure"],
    ["models"],
    ["kernels"],
    ["plan", "sandbox"],
    ["files", "events"],
    ["registry"],
    ["errors"],
]
RANK = {name: len(ORDER) - index for index, row in enumerate(ORDER) for name in row}
WITHOUT_MLX = {"plan", "files", "events", "registry", "errors", "sandbox"}
MODULES = sorted(SOURCE.rglob("*.py"))


def _room(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def _imports(path: Path) -> list[tuple[int, str]]:
    """(line, dotted name) of everything imported, wherever in the file; type-checking blocks count too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_downward(path: Path) -> None:
    room = _room(path)
    if room == "__init__":
        return
    assert room in RANK, f"{path}: {room} is not in the layer order; add it to ORDER and docs/conventions.md"
    for line, name in _imports(path):
        parts = name.split(".")
        if parts[0] != "optiq" or len(parts) < 2 or parts[1] == "__version__":
            continue
        other = parts[1]
        assert other in RANK, f"{path}:{line}: imports {name}, which is in no layer"
        assert other == room or RANK[other] < RANK[room], f"{path}:{line}: {room} imports {name}, which is not below it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_models_imports_mlx_lm_and_the_lowest_layers_no_mlx(path: Path) -> None:
    for line, name in _imports(path):
        package = name.split(".")[0]
        assert package != "mlx_lm" or _room(path) == "models", f"{path}:{line}: mlx_lm outside optiq.models"
        assert package != "mlx" or _room(path) not in WITHOUT_MLX, f"{path}:{line}: {_room(path)} knows no MLX"


def test_the_public_turboquant_package_only_names_what_is_in_kv() -> None:
    for path in sorted((SOURCE.parent / "turboquant_mlx").rglob("*.py")):
        for line, name in _imports(path):
            assert name.startswith(("optiq.kv.turboquant.", "__future__.")), f"{path}:{line}: imports {name}"


def test_an_upward_import_would_be_found() -> None:
    assert RANK["cli"] > RANK["quantize"] > RANK["measure"] > RANK["models"] > RANK["kernels"] > RANK["plan"]
    assert len(MODULES) > 20
