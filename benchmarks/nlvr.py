"""NLVR by cross-validation: `nlvr_tiny` trained on all folds but one, as often as there are folds, and tested on that.

    python -m benchmarks.nlvr --data=nlvr/dev.parquet [--folds=5] [--workdir=workdirs/nlvr] [--output=FILE] \\
        [--config=nlvr_tiny] [--config.KEY=VALUE ...]

Each fold is a run of `python -m vlm_jax.main` in `WORKDIR/fold_K`; after an interruption the same command goes on where
it was. Every sentence is answered once, by the model that saw neither it nor its scene. All answers together are scored
beside the commoner one of the sentences trained on; 95% intervals draw clusters of what shares a sentence or a scene.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from vlm_jax.evaluate import results
from vlm_jax.evaluate.bootstrap import Interval, intervals
from vlm_jax.main import main as train

EVALUATOR = "answers"
Rows = Mapping[str, np.ndarray]


def fold_rows(arguments: Sequence[str], data: str, folds: int, fold: int, workdir: pathlib.Path) -> Rows:
    """Trains without a fold, and gives the rows of the evaluator on it. Raises: SystemExit where training fails."""
    options = {"path": data, "folds": folds, "fold": fold}
    code = train([f"--workdir={workdir}", *arguments, *(f"--bind=NLVR.{name}={v}" for name, v in options.items())])
    if code:
        raise SystemExit(code)
    return results.read(workdir)[EVALUATOR].rows()[EVALUATOR]


def pooled(folds: Sequence[Rows]) -> dict:
    """Accuracy of all folds' answers, of the commonest answer, and the difference, each with its 95% interval."""
    rows = {name: np.concatenate([fold[name] for fold in folds]) for name in ("cluster", "accuracy", "majority")}
    (majority, accuracy), (_, over) = intervals(np.stack([rows["majority"], rows["accuracy"]]), rows["cluster"])
    return {
        **described(accuracy, "accuracy"),
        **described(majority, "majority"),
        **described(over, "over_majority"),
        "sentences": len(rows["cluster"]),
        "clusters": len(np.unique(rows["cluster"])),
        "folds": [
            {name: round(float(fold[name].mean()), 4) for name in ("accuracy", "majority")}
            | {"sentences": len(fold["cluster"]), "answered true": int((fold["answer"] == "true").sum())}
            for fold in folds
        ],
    }


def described(interval: Interval, name: str) -> dict[str, float]:
    ends = {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {key: round(value, 4) for key, value in ends.items()}


def main(argv: Sequence[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("--data", required=True, help="Parquet files, see `vlm_jax.data.sources.nlvr`")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--config", default="nlvr_tiny", help="a recipe whose evaluator `answers` reads NLVR")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("workdirs/nlvr"))
    parser.add_argument("--output", type=pathlib.Path)
    options, others = parser.parse_known_args(argv)
    arguments = [f"--config={options.config}", *others]
    rows = []
    for fold in range(options.folds):
        rows.append(fold_rows(arguments, options.data, options.folds, fold, options.workdir / f"fold_{fold}"))
        print(f"fold {fold}: accuracy {rows[-1]['accuracy'].mean():.3f}, majority {rows[-1]['majority'].mean():.3f}")
    found = pooled(rows)
    print(json.dumps(found, indent=2))
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
