"""`curate`: chooses records by rules, one after the other, and tells what each of them removed."""

from __future__ import annotations

import argparse
import dataclasses
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt64

from vlm_jax.data.storage import content_hash
from vlm_jax.data.tools.balance import Matcher, Matches, balance_report, keep_probability, read_entries
from vlm_jax.data.tools.files import write_json, write_whole
from vlm_jax.data.tools.hashing import Hashes, near_duplicates
from vlm_jax.data.tools.keep import write_keep
from vlm_jax.data.tools.measure import Measured, Measurements, default_output
from vlm_jax.data.tools.rules import Rule, add_rules, rules
from vlm_jax.data.tools.scores import Scores, key_number
from vlm_jax.data.tools.statistics import caption_key
from vlm_jax.errors import UserError

SHOWN = 5  # removed records that the report names for each rule


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Choose records. Rules apply in the order of the flags below; without a flag there is no such rule, and only "
        "unreadable records go. Writes keep.index (for `convert --keep` and data.tools.keep.Kept), removed.tsv and "
        "curate.json. Interrupted, the same command goes on."
    )
    parser.add_argument("--output", metavar="DIR", help="default: reports/NAME of the source, as for `inspect`")
    parser.add_argument("--threads", type=int, metavar="N", default=0, help="default: one for each core")
    add_rules(parser)
    parser.add_argument("--same_caption", type=int, metavar="N", help="records with the same caption, at most")
    parser.add_argument(
        "--duplicate_bits", type=int, metavar="N", help="images that differ by so many bits of 128: the first stays"
    )
    parser.add_argument("--scores", metavar="FILE", help='JSONL of {"key", "score"}: records without a score go')
    parser.add_argument("--min_score", type=float, metavar="X", help="of --scores, at least")
    parser.add_argument("--top_fraction", type=float, metavar="X", help="of what is left, the best by --scores")
    parser.add_argument("--balance", metavar="FILE", help="entries, one a line or a JSON list: MetaCLIP's balancing")
    parser.add_argument("--balance_t", type=float, metavar="T", default=20_000, help="records of an entry, about")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of the draws of --balance")


def check(flags: argparse.Namespace) -> None:
    """Raises: UserError, before the source is opened."""
    rules(flags)
    ranged = {"threads": 0, "same_caption": 1, "duplicate_bits": 0}
    for name, least in ranged.items():
        if (value := getattr(flags, name)) is not None and value < least:
            raise UserError(f"--{name}={value}: wanted is at least {least}.")
    if flags.balance_t <= 0:
        raise UserError(f"--balance_t={flags.balance_t}: wanted is more than 0.")
    if flags.top_fraction is not None and not 0 < flags.top_fraction <= 1:
        raise UserError(f"--top_fraction={flags.top_fraction}: wanted is more than 0 and at most 1.")
    if bool(flags.scores) != (flags.min_score is not None or flags.top_fraction is not None):
        raise UserError("--scores=FILE goes with --min_score or --top_fraction, and they with it.")


def run(source: Any, flags: argparse.Namespace) -> Iterator[str]:
    """Chooses, writes, and gives the table of what each rule removed."""
    folder = Path(flags.output or default_output(source))
    scores = Scores(flags.scores) if flags.scores else None
    matcher = Matcher(read_entries(flags.balance)) if flags.balance else None
    rows = Measurements(source, folder, None, flags.threads)
    choice = Choice(len(rows))
    seen = look(rows, choice, rules(flags), flags.same_caption, matcher, flags.seed)
    report = compare(choice, seen, flags, scores, matcher)
    kept = np.flatnonzero(choice.kept)
    write_keep(folder / "keep.index", source, kept)
    examples = _write_removed(folder / "removed.tsv", rows, choice)
    for entry, named in zip(choice.report, examples):
        entry["examples"] = named
    outcome = {"records": len(rows), "kept": len(kept), "rules": choice.report, **report}
    write_json(folder / "curate.json", {"source": source.name, "fingerprint": source.fingerprint, **outcome})
    yield from choice.table()
    yield f"{folder}: keep.index, removed.tsv, curate.json"


class Choice:
    """Which records are left, and which rule each of the others fell to."""

    def __init__(self, count: int):
        self.fell_to = np.full(count, -1, np.int16)  # -1: it is left
        self.report: list[dict[str, Any]] = []

    @property
    def kept(self) -> Bool[np.ndarray, "n"]:
        return self.fell_to < 0

    def begin(self, name: str, value: Any = None) -> int:
        """The number of a new rule."""
        self.report.append({"rule": name, "value": value, "reached": 0, "removed": 0})
        return len(self.report) - 1

    def test(self, number: int, record: int, passes: bool) -> bool:
        """Notes what a rule says of a record that is left."""
        entry = self.report[number]
        entry["reached"] += 1
        if not passes:
            entry["removed"] += 1
            self.fell_to[record] = number
        return passes

    def remove(self, name: str, value: Any, passes: Bool[np.ndarray, "n"]) -> None:
        """A rule that says at once which records may stay; of those that are left, the others go."""
        number, left = self.begin(name, value), self.kept
        gone = left & ~passes
        self.fell_to[gone] = number
        self.report[number].update(reached=int(left.sum()), removed=int(gone.sum()))

    def table(self) -> list[str]:
        """A line for each rule."""
        lines = [f"{'rule':<16} {'value':<16} {'reached':>12} {'removed':>12} {'left':>12}"]
        for entry in self.report:
            value = "" if entry["value"] is None else str(entry["value"])[-16:]
            left = entry["reached"] - entry["removed"]
            lines.append(f"{entry['rule']:<16} {value:<16} {entry['reached']:>12,} {entry['removed']:>12,} {left:>12,}")
        return lines


@dataclasses.dataclass(frozen=True)
class Seen:
    """What rules need that compare records.

    Attributes:
      keys: 64 bits of each record's key.
      hashed: numbers of the records that `hashes` are of.
      matches: entries of each record's captions, where a list of them was given.
      draws: a number in [0, 1) of each record's key.
    """

    keys: UInt64[np.ndarray, "n"]
    hashed: np.ndarray
    hashes: Hashes
    matches: Matches
    draws: np.ndarray


def look(
    rows: Measurements,
    choice: Choice,
    asked: Sequence[Rule],
    same_caption: int | None,
    matcher: Matcher | None,
    seed: int,
) -> Seen:
    """Applies the rules on single records, in one pass, and gathers what the others need."""
    unreadable = choice.begin("unreadable")
    numbers = [choice.begin(rule.name, rule.value) for rule in asked]
    same = None if same_caption is None else choice.begin("same_caption", same_caption)
    captions: Counter[int] = Counter()
    keys, draws = np.zeros(len(rows), np.uint64), np.zeros(len(rows))
    hashes, hashed = bytearray(), array("q")

    def left_of(at: int, row: Measured) -> list[str] | None:
        """The captions that pass all rules, None where the record goes."""
        texts = list(row.texts)
        if not choice.test(unreadable, at, not row.unreadable):
            return None
        for number, rule in zip(numbers, asked):
            if rule.caption is not None:
                texts = [text for text in texts if rule.caption(text)]
            if not choice.test(number, at, bool(texts) if rule.image is None else rule.image(row)):
                return None
        if same is not None:
            own = {caption_key(text) for text in texts}
            if not choice.test(same, at, any(captions[key] < same_caption for key in own)):
                return None
            captions.update(own)
        return texts

    def entries_of_each() -> Iterator[set[int]]:
        for at, row in enumerate(rows):
            keys[at] = key_number(row.key)
            draws[at] = int(content_hash(seed, row.key), 16) / 2**64
            texts = left_of(at, row)
            if texts is not None and row.hash:
                hashes.extend(bytes.fromhex(row.hash))
                hashed.append(at)
            yield {entry for text in texts or () for entry in matcher(text)} if matcher else set()

    matches = Matches.of(entries_of_each())
    return Seen(keys, np.array(hashed, np.int64), Hashes.from_bytes(hashes), matches, draws)


def compare(
    choice: Choice, seen: Seen, flags: argparse.Namespace, scores: Scores | None, matcher: Matcher | None
) -> dict[str, Any]:
    """Applies the rules that compare records; what the report says of balancing."""
    if flags.duplicate_bits is not None:
        passes = np.ones(len(seen.keys), bool)
        passes[seen.hashed] = near_duplicates(seen.hashes, flags.duplicate_bits) < 0
        choice.remove("duplicate_bits", flags.duplicate_bits, passes)
    if scores is not None:
        of_record = scores(seen.keys)
        if np.isnan(of_record).all():
            raise UserError(f"--scores={flags.scores} has no key of this source.")
        choice.remove("scores", flags.scores, ~np.isnan(of_record))
        if flags.min_score is not None:
            choice.remove("min_score", flags.min_score, of_record >= flags.min_score)
        if flags.top_fraction is not None:
            choice.remove("top_fraction", flags.top_fraction, _best(of_record, choice.kept, flags.top_fraction))
    if matcher is None:
        return {}
    left = choice.kept
    matches = seen.matches.take(left)
    stays = seen.draws[left] < keep_probability(matches, len(matcher.entries), flags.balance_t)
    passes = np.zeros(len(left), bool)
    passes[left] = stays
    choice.remove("balance", flags.balance, passes)
    return {"balance": balance_report(matcher, matches, stays, flags.balance_t)}


def _best(scores: np.ndarray, left: Bool[np.ndarray, "n"], fraction: float) -> Bool[np.ndarray, "n"]:
    """The best of those that are left; of equal ones the first."""
    candidates = np.flatnonzero(left)
    order = candidates[np.argsort(-scores[candidates], kind="stable")]
    best = np.zeros(len(scores), bool)
    best[order[: round(len(order) * fraction)]] = True
    return best


def _write_removed(path: Path, rows: Measurements, choice: Choice) -> list[list[str]]:
    """Index, key and rule of each removed record; the first keys of each rule."""
    examples: list[list[str]] = [[] for _ in choice.report]

    def lines() -> Iterator[str]:
        for at, row in enumerate(rows):
            number = int(choice.fell_to[at])
            if number >= 0:
                yield f"{row.index}\t{row.key}\t{choice.report[number]['rule']}\n"
                if len(examples[number]) < SHOWN:
                    examples[number].append(row.key)

    write_whole(path, lines())
    return examples
