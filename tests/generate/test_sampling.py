"""Which source decides a setting, and which values are refused."""

from __future__ import annotations

from typing import Any

import pytest

from optiq.errors import FormatError, InputError
from optiq.generate.sampling import SETTINGS, SOURCES, Sampling, check, describe, resolve
from optiq.models.families import FAMILIES, USES, preset


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_the_first_source_that_names_a_setting_decides(setting: Any) -> None:
    name = setting.name
    values = {"flag": 1, "preset": 0.5, "generation_config": 0.25}
    if setting.whole:
        values = {"flag": 3, "preset": 2, "generation_config": 1}
    tables = {source: {name: value} for source, value in values.items()}
    for source, expected in values.items():
        resolved = resolve(tables["flag"], tables["preset"], tables["generation_config"], seed=0)
        assert getattr(resolved.sampling, name) == expected and resolved.sources[name] == source
        tables[source] = {name: None}
    resolved = resolve(tables["flag"], tables["preset"], tables["generation_config"], seed=0)
    assert getattr(resolved.sampling, name) == setting.neutral and resolved.sources[name] == "default"
    assert getattr(Sampling(), name) == setting.neutral


def test_sources_mix() -> None:
    resolved = resolve({"top_p": 0.5}, {"temperature": 0.7, "top_p": 0.8}, {"temperature": 1.0, "min_p": 0.1, "top_k": 7}, seed=9)
    assert resolved.sampling == Sampling(temperature=0.7, top_p=0.5, min_p=0.1, top_k=7, seed=9)
    assert {resolved.sources[setting.name] for setting in SETTINGS} == set(SOURCES)
    text = "sampling: top p 0.5 (flag); temperature 0.7 (preset f, not thinking); top k 7, min p 0.1 (generation_config.json)"
    assert describe(resolved, "f", thinking=False) == text
    assert "(preset f, chat)" in describe(resolved, "f", thinking=False, use="chat")


@pytest.mark.parametrize(
    ("config", "temperature", "top_k"),
    [
        ({"do_sample": False, "temperature": 0.6}, 0, 0),
        ({"do_sample": True}, 1, 0),
        ({"do_sample": True, "temperature": 0.6, "top_k": -1}, 0.6, 0),
        ({"temperature": None, "top_k": 50}, 0, 50),
        ({}, 0, 0),
    ],
)
def test_generation_config_in_our_terms(config: dict[str, Any], temperature: float, top_k: int) -> None:
    found = resolve({}, {}, config, seed=0).sampling
    assert (found.temperature, found.top_k) == (temperature, top_k)


def test_filters_are_not_mentioned_where_they_do_nothing() -> None:
    resolved = resolve({"temperature": 0.0}, {"top_k": 20, "presence_penalty": 1.5}, {}, seed=0)
    assert describe(resolved, "f", None) == "sampling: temperature 0 (flag); presence penalty 1.5 (preset f)"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", -1.0, "--temp is -1.0, expected a number from 0 to 10"),
        ("temperature", float("nan"), "--temp is nan, expected a number from 0 to 10"),
        ("top_p", 0.0, "--top-p is 0.0, expected a number above 0 and at most 1"),
        ("top_p", 1.5, "--top-p is 1.5, expected a number above 0 and at most 1"),
        ("top_k", -3, "--top-k is -3, expected a whole number of at least 0"),
        ("top_k", 2.5, "--top-k is 2.5, expected a whole number of at least 0"),
        ("min_p", 2.0, "--min-p is 2.0, expected a number from 0 to 1"),
        ("repetition_penalty", 0.0, "--repetition-penalty is 0.0, expected a number above 0 and at most 10"),
        ("presence_penalty", 99.0, "--presence-penalty is 99.0, expected a number from -10 to 10"),
        ("frequency_penalty", float("inf"), "--frequency-penalty is inf, expected a number from -10 to 10"),
        ("seed", -4, "--seed is -4, expected a whole number from 0 to 9223372036854775807"),
    ],
)
def test_values_out_of_range_are_named(name: str, value: float, message: str) -> None:
    with pytest.raises(InputError) as error:
        check({name: value})
    assert str(error.value) == message


def test_a_bad_generation_config_counts_only_where_it_decides() -> None:
    with pytest.raises(FormatError, match=r"generation_config.json: top_p is 'high', expected a number above 0 .* --top-p"):
        resolve({}, {}, {"top_p": "high"}, seed=0)
    assert resolve({"top_p": 0.9}, {}, {"top_p": "high"}, seed=0).sampling.top_p == 0.9


def test_presets_name_settings_within_their_ranges_and_a_source() -> None:
    names = {setting.name for setting in SETTINGS}
    for name, family in FAMILIES.items():
        assert family.source.startswith("https://"), name
        for mode in (True, False):
            for use in (None, *USES):
                assert preset(name, mode, use) and set(preset(name, mode, use)) <= names
                check(preset(name, mode, use))
