"""Requests within a model's context: HashHop as long as it takes, MMLU with as many solved questions as it takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from optiq.errors import InputError
from optiq.evals.data import Data
from optiq.evals.prompts import Prompts, Settings, all_take, open_prompts
from optiq.evals.task import Answer, Fitting, Sample
from optiq.evals.tasks import TASKS
from optiq.evals.tasks.hashhop import HashHop
from optiq.evals.tasks.mmlu import Mmlu


@pytest.fixture(scope="module")
def prompts(tiny_model: Path) -> Prompts:
    return open_prompts(tiny_model, Settings())


def test_hashhop_is_as_long_as_the_model_takes(prompts: Prompts) -> None:
    assert prompts.context == 4096 and not all(map(prompts.takes, HashHop(count=4).samples(Data())))
    fitted = HashHop(max_tokens=64).fitted(prompts.takes)
    assert fitted.characters % 100 == 0 and fitted == replace(HashHop(max_tokens=64), characters=fitted.characters)
    lengths = [len(prompts.request(sample)[0].prompt) for sample in fitted.samples(Data())[::5]]
    assert max(lengths) + 64 <= 4096 < max(lengths) * 1.06 + 64
    assert HashHop(characters=0, max_tokens=64).fitted(prompts.takes).characters == pytest.approx(fitted.characters, abs=200)


def test_what_is_taken_stays_as_it_is(prompts: Prompts) -> None:
    small = HashHop(characters=800, max_tokens=8)
    assert small.fitted(prompts.takes) is small
    wide = replace(prompts, context=None)
    assert (
        HashHop().fitted(wide.takes) == HashHop() and HashHop(characters=900).fitted(all_take([wide, prompts])).characters == 900
    )
    assert HashHop().fitted(all_take([wide, prompts])).characters < 12_000
    with pytest.raises(InputError, match="hashhop: the model takes no question of 144 characters; leave this task out"):
        HashHop().fitted(replace(prompts, context=100).takes)
    assert [name for name in TASKS if isinstance(TASKS[name], Fitting)] == ["hashhop"]


def test_mmlu_leaves_solved_questions_out_until_the_prompt_fits(prompts: Prompts, shared: Path) -> None:
    sample = Mmlu(count=1).samples(Data(shared / "data" / "eval"))[0]
    lengths = [len(prompts.tokenizer.encode(text)) for text in (sample.text, *sample.shorter)]
    assert len(lengths) == 6 and lengths == sorted(lengths, reverse=True)
    assert prompts.fitted(sample) is sample
    two = replace(prompts, context=lengths[3] + 1).fitted(sample)
    assert two.text == sample.shorter[2] and two.text.count("\nAnswer: ") == 2 and two.text.endswith("\nAnswer:")
    assert Mmlu().score(two, Answer(sample.choices[0])).details["shots"] == 2
    assert "shots" not in Mmlu().score(sample, Answer(sample.choices[0])).details
    assert replace(prompts, context=1).fitted(sample).text == sample.shorter[-1]


def test_a_prompt_of_a_chat_has_no_shorter_form(prompts: Prompts) -> None:
    sample = Sample("s", 0, ({"role": "user", "content": "word " * 5000},))
    assert not prompts.takes(sample) and prompts.fitted(sample) is sample
