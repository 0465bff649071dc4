"""lm-evaluation-harness's own verdicts on answers, for `evals.py`; runs in an environment of lm-eval's own, without ours.

    python lm_eval_worker.py gsm8k|ifeval < ROWS > VERDICTS

In: a JSON list of {"answer", "target"} (GSM8K: the solution of the data) or {"answer", "row"} (IFEval: the row of the data).
Out: a JSON list of {"strict-match", "flexible-extract"}, each with what it took and 0 or 1, or of {"strict", "loose"}, each
with a verdict per instruction. IFEval counts sentences with NLTK's Punkt model, which `NLTK_DATA` must hold.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lm_eval


def gsm8k(rows: list[dict[str, Any]]) -> list[dict[str, dict[str, Any]]]:
    """Filters and metric as `gsm8k.yaml` has them."""
    import yaml
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_metric
    from lm_eval.filters import build_filter_ensemble

    config = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml").read_text())
    metric = dict(config["metric_list"][0])
    options = {key: metric[key] for key in ("ignore_case", "ignore_punctuation", "regexes_to_ignore")}
    found: list[dict[str, dict[str, Any]]] = [{} for _ in rows]
    for each in config["filter_list"]:
        steps = [(step["function"], {k: v for k, v in step.items() if k != "function"}) for step in each["filter"]]
        asked = [Instance("generate_until", {}, (), n, resps=[row["answer"]]) for n, row in enumerate(rows)]
        build_filter_ensemble(each["name"], [(name, arguments or None) for name, arguments in steps]).apply(asked)
        for verdict, instance, row in zip(found, asked, rows, strict=True):
            said = instance.filtered_resps[each["name"]]
            score = get_metric(metric["metric"])(references=[row["target"]], predictions=[said], **options)
            verdict[each["name"]] = {"said": said, "score": float(score[metric["metric"]])}
    return found


def ifeval(rows: list[dict[str, Any]]) -> list[dict[str, list[bool]]]:
    """The two tests of lm-eval's task."""
    from lm_eval.tasks.ifeval import utils

    found = []
    for row in rows:
        data = row["row"]
        asked = utils.InputExample(data["key"], data["instruction_id_list"], data["prompt"], data["kwargs"])
        found.append(
            {
                "strict": utils.test_instruction_following_strict(asked, row["answer"]).follow_instruction_list,
                "loose": utils.test_instruction_following_loose(asked, row["answer"]).follow_instruction_list,
            }
        )
    return found


if __name__ == "__main__":
    json.dump({"gsm8k": gsm8k, "ifeval": ifeval}[sys.argv[1]](json.load(sys.stdin)), sys.stdout)
