"""The table of an evaluation in a model card (`README.md` of a model directory), between two marks; the rest is left as it is."""

from __future__ import annotations

from pathlib import Path

from optiq import files
from optiq.errors import InputError
from optiq.evals.report import Report, markdown

BEGIN, END = "<!-- optiq eval: begin -->", "<!-- optiq eval: end -->"


def write(directory: Path, report: Report) -> Path:
    """Put the report's tables into the card of a model; an earlier one of ours is replaced.

    Raises:
        InputError: there is no card, or its marks are damaged.
    """
    path = directory / "README.md"
    if not path.is_file():
        raise InputError(f"{path} does not exist; --card writes into the card of a converted model")
    text = path.read_text(encoding="utf-8")
    section = f"{BEGIN}\n## Evaluation\n\n{markdown(report)}{END}"
    if (BEGIN in text) != (END in text) or text.count(BEGIN) > 1:
        raise InputError(f"{path}: the marks '{BEGIN}' and '{END}' do not stand there once each; mend or remove them")
    if BEGIN in text:
        before, _, rest = text.partition(BEGIN)
        text = before + section + rest.partition(END)[2]
    else:
        text = f"{text.rstrip()}\n\n{section}\n"
    files.write_text(path, text)
    return path
