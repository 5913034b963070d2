"""What a checkpoint says of the data: which they are, where each source stands, and what was unreadable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

# Unreadable records that are named in the report.
NAMED = 10
# Differences that are shown.
SHOWN = 8


def changes(before: dict, now: dict) -> list[str]:
    """What differs between two descriptions (`seed`, `sources`, `packing`) of the data, one phrase a difference."""
    found = [f"seed was {before['seed']}, is {now['seed']}"] if before["seed"] != now["seed"] else []
    for old, new in _pairs(before["sources"], now["sources"]):
        if old is None:
            found.append(f"{new['name']} is new ({new['length']} examples, weight {new['weight']:g})")
        elif new is None:
            found.append(f"{old['name']} is gone ({old['length']} examples, weight {old['weight']:g})")
        else:
            found += [f"{old['name']}.{key} was {old[key]}, is {new[key]}" for key in new if old[key] != new[key]]
    old, new = (description.get("packing") or {} for description in (before, now))
    found += [f"packing.{key} was {old.get(key)}, is {new[key]}" for key in new if old.get(key) != new[key]]
    return found[:SHOWN] + ([f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else [])


def window(description: dict) -> str:
    """How many examples become how many rows."""
    packing = description.get("packing") or {"examples": 1, "rows": 1}
    return f"{packing['examples']} in {packing['rows']}"


def _pairs(before: list[dict], now: list[dict]) -> list[tuple[dict | None, dict | None]]:
    """Sources that are the same one: by name; where there is one before and one now, these."""
    if len(before) == len(now) == 1:
        return [(before[0], now[0])]
    old, new = ({source["name"]: source for source in sources} for sources in (before, now))
    return [(old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys())]


def origin(before: dict, now: dict, next_example: int) -> dict:
    """From where on changed data hold, `index`, and the `rows` that each source has had by then.

    Args:
      before: the state of a checkpoint. now: the description of the changed data.
      next_example: where the state stands, in examples.
    """
    if len(before["sources"]) == len(now["sources"]) == 1:  # one source: its rows are the rows of the run, as before
        index, (had,) = before["origin"]["index"], before["origin"]["rows"].values()
        return {"index": index, "rows": {now["sources"][0]["name"]: had}}
    rows = {source["name"]: before["rows"].get(source["name"], 0) for source in now["sources"]}
    return {"index": next_example, "rows": rows}


def complete(state: dict) -> dict:
    """A state as it is written today; one of a single source, from before there were mixtures, says less."""
    (first, *_) = (source["name"] for source in state["sources"])
    return {"origin": {"index": 0, "rows": {first: 0}}, "rows": {first: state["next_index"]}, **state}


class Tally:
    """Counts unreadable records, and keeps the first ones, over processes and restarts."""

    def __init__(self, names: Iterable[str], state: dict):
        """Args: names: of the sources. state: what `state` has given, or {}."""
        self.total: int = state.get("unreadable", 0)
        self.by_source = Counter(state.get("unreadable_of", {}))
        self._names = list(names)
        self.first = [(key, why) for key, why in state.get("unreadable_first", ())]
        self._news: list[tuple[int, str, str, str]] = []

    def add(self, news: Iterable[tuple[int, str, str, str]]) -> None:
        """Takes the unreadable records of a batch: row, source, key and reason."""
        self._news += news

    def state(self, gather: Callable[[Any], list[Any]]) -> dict:
        """All counts, the same on every process, with what this and the others have found since the last call."""
        news, self._news = self._news, []
        keyed = ((row, key if len(self._names) == 1 else f"{name}/{key}", why) for row, name, key, why in news)
        told = gather([Counter(name for _, name, _, _ in news), _distinct(keyed)])
        for counts, _ in told:
            self.by_source.update(counts)
            self.total += sum(counts.values())
        added = sorted(tuple(named) for _, part in told for named in part)
        known = [(-1, *named) for named in self.first]
        self.first = [(key, why) for _, key, why in _distinct([*known, *added])]
        return {
            "unreadable": self.total,
            "unreadable_of": {name: self.by_source[name] for name in self._names},
            "unreadable_first": [list(named) for named in self.first],
        }


def _distinct(unreadable: Iterable[tuple[int, str, str]]) -> list[tuple[int, str, str]]:
    """The first of them, each record once."""
    found: dict[tuple[str, str], tuple[int, str, str]] = {}
    for row, key, why in unreadable:
        if len(found) < NAMED:
            found.setdefault((key, why), (row, key, why))
    return list(found.values())
