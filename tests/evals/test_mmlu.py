"""MMLU: prompts, shares of subjects, both forms of the files, written answers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from optiq.errors import FormatError, InputError
from optiq.evals.data import Data
from optiq.evals.task import Answer
from optiq.evals.tasks.mmlu import LETTERS, Mmlu, Question, questions, written


def test_the_protocol(shared: Path) -> None:
    samples = Mmlu().samples(Data(shared / "data" / "eval"))
    subjects = Counter(sample.id.split("/")[1] for sample in samples)
    assert len(samples) == 969 and set(subjects.values()) == {17} and len({sample.id for sample in samples}) == 969
    sample = samples[0]
    head = "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
    assert sample.text.startswith(head) and sample.text.endswith("\nAnswer:") and sample.text.count("\nAnswer:") == 6
    assert sample.choices == (" A", " B", " C", " D") and not sample.messages
    assert {sample.gold for sample in samples} == set(LETTERS)


def test_the_options(shared: Path) -> None:
    data = Data(shared / "data" / "eval")
    few = Mmlu(count=10, shots=0).samples(data)
    assert len(few) == len({sample.id.split("/")[1] for sample in few}) == 10 and few[0].text.count("Answer:") == 1
    assert {sample.id for sample in Mmlu(count=57).samples(data)} <= {sample.id for sample in Mmlu().samples(data)}
    assert len(Mmlu(count=0).samples(data)) == 57 * 24  # the folder holds the first 24 of each
    chat = Mmlu(count=1, generate=True).samples(data)[0]
    assert chat.messages and not chat.choices and "'Answer: X'" in chat.messages[0]["content"]
    assert Mmlu(generate=True).score(chat, Answer(f"So the answer is **{chat.gold}**.")).correct
    with pytest.raises(InputError, match=r"mmlu\.shots is 6"):
        Mmlu(shots=6).samples(data)


def test_gold_letters_are_right_and_others_wrong(shared: Path) -> None:
    for sample in Mmlu(count=57).samples(Data(shared / "data" / "eval")):
        verdicts = {choice.strip(): Mmlu().score(sample, Answer(choice)).correct for choice in sample.choices}
        assert [letter for letter, right in verdicts.items() if right] == [sample.gold]


def test_both_forms_of_the_files() -> None:
    numbered = [["question", "choice0", "choice1", "choice2", "choice3", "answer"], ["Q", "a", "b", "c", "d", "3"]]
    assert (
        questions(numbered, "s") == questions([["Q", "a", "b", "c", "d", "D"]], "s") == [Question("Q", ("a", "b", "c", "d"), 3)]
    )
    for row in (["Q", "a", "b", "c", "D"], ["Q", "a", "b", "c", "d", "E"], ["Q", "a", "b", "c", "d", ""], []):
        with pytest.raises(FormatError, match="mmlu: s, row 1 has"):
            questions([row], "s")


@pytest.mark.parametrize(
    ("text", "letter"),
    [("Answer: C", "C"), ("The answer is (b).", "B"), ("A or B? Answer:\nB. Answer: D", "D"), ("I think C", "C"), ("none", None)],
)
def test_written_answers(text: str, letter: str | None) -> None:
    assert written(text) == letter
