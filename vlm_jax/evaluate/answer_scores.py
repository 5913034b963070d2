"""Scores of answers by type of question, beside what always giving the type's commonest answer would score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vlm_jax.evaluate.base import Result
from vlm_jax.evaluate.bootstrap import intervals
from vlm_jax.evaluate.text_metrics.edits import anls, distance
from vlm_jax.evaluate.text_metrics.vqa import exact_match, normalise, vqa_accuracy
from vlm_jax.report.artifacts import Table

MOST_TYPES = 16  # with more, each is in the table alone and no metric of its own


class Question(NamedTuple):
    """What was asked of a record, the answers that are right, and the cluster of what depends on one another."""

    index: int
    text: str
    references: tuple[str, ...]
    type: str
    cluster: int


Measure = Callable[[Sequence[str], Sequence[Sequence[str]]], Float[np.ndarray, "n"]]


def _each(score: Callable[[str, Sequence[str]], float]) -> Measure:
    return lambda answers, references: np.array([float(score(a, r)) for a, r in zip(answers, references)])


def error_rates(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Float[np.ndarray, "n"]:
    """Edits to the first reference, over the mean length of these: their mean is the character error rate."""
    edits = np.array([distance(answer, others[0]) for answer, others in zip(answers, references)], np.float64)
    return edits * len(edits) / max(sum(len(others[0]) for others in references), 1)


# Values of which a metric is the mean.
METRICS: dict[str, Measure] = {
    "accuracy": _each(exact_match),
    "vqa_accuracy": _each(vqa_accuracy),
    "anls": _each(anls),
    "cer": error_rates,
}
NORMALISED = ("accuracy", "vqa_accuracy")


def commonest(questions: Iterable[Question], metric: str) -> dict[str, str]:
    """Of each type the answer that is given most, as it was first written; of several the first."""
    same = normalise if metric in NORMALISED else str
    counts: dict[str, Counter[str]] = {}
    first: dict[str, str] = {}
    for question in questions:
        for answer in question.references:
            first.setdefault(same(answer), answer)
            counts.setdefault(question.type, Counter())[same(answer)] += 1
    return {type: first[of.most_common(1)[0][0]] for type, of in counts.items()}


def scored(metric: str, questions: Sequence[Question], answers: Sequence[str], usual: Mapping[str, str]) -> Result:
    """`METRIC`, `majority` and `over_majority` over all questions, with the 95% interval of the latter; see `Answers`.

    Intervals take clusters as what was drawn, and of error rates the length of the references as given.

    Args:
      usual: the answer of each type that `majority` is the score of; "" for a type that is not in it.
    """
    measure, references = METRICS[metric], [question.references for question in questions]
    always = [usual.get(question.type, "") for question in questions]
    of_type = np.array([question.type for question in questions])
    cluster = np.array([question.cluster for question in questions])
    types = {type: np.flatnonzero(of_type == type) for type in dict.fromkeys(of_type.tolist())}

    def values(texts: Sequence[str], chosen: Iterable[int]) -> Float[np.ndarray, "k"]:
        return measure([texts[k] for k in chosen], [references[k] for k in chosen])

    rows = {"index": np.array([question.index for question in questions]), "cluster": cluster, "subset": of_type}
    rows |= {"truth": np.array([others[0] for others in references]), "answer": np.array(answers)}
    metrics, tables, shown = {}, {}, []
    if metric == "cer":  # there less is better; this says which answers are right
        rows["exact_match"] = np.array([answer == others[0] for answer, others in zip(answers, references)])
        metrics["exact_match"] = float(rows["exact_match"].mean())

    for type, chosen in [(None, np.arange(len(questions))), *types.items()]:
        alone, own = values(always, chosen), values(answers, chosen)
        (_, spread), (_, over) = intervals(np.stack([alone, own]), cluster[chosen])
        if type is None:
            rows |= {metric: own, "majority": alone, "over_majority": own - alone}
            metrics |= {metric: spread.mean, "majority": float(alone.mean()), "over_majority": over.mean}
            metrics |= {"over_majority_low": over.low, "over_majority_high": over.high}
        elif 1 < len(types) <= MOST_TYPES:
            name = f"{metric}/{type}"
            metrics |= {name: spread.mean, f"majority/{type}": float(alone.mean())}
            tables[type] = {"index": rows["index"][chosen], "cluster": cluster[chosen], name: own}
        interval = f"{100 * spread.mean:.1f}% [{100 * spread.low:.1f}, {100 * spread.high:.1f}]"
        usually = ("all", "") if type is None else (type, usual.get(type, ""))
        shown.append((usually[0], len(chosen), interval, usually[1], f"{100 * alone.mean():.1f}%"))
    if len(types) > 1:
        metrics["macro"] = float(np.mean([values(answers, chosen).mean() for chosen in types.values()]))
    columns = ("type", "questions", f"{metric}, 95% interval", "commonest answer", f"{metric} of it")
    metrics["examples"] = float(len(questions))
    return Result(metrics, {"types": Table("answers by type of question", columns, shown)}, {"answers": rows, **tables})
