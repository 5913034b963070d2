"""VQA accuracy (Antol et al. 2015, section 3.3; Goyal et al. 2017), with the normalisation of the official script."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBERS = dict(zip("none zero one two three four five six seven eight nine ten".split(), (0, *range(11))))
_ARTICLES = frozenset(("a", "an", "the"))
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOP = re.compile(r"\.(?!\d)")
_THOUSANDS = re.compile(r"\d,\d")
# What is written without one of its apostrophes gets it back.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()


def _without_one(word: str) -> list[str]:
    return [word[:k] + word[k + 1 :] for k, letter in enumerate(word) if letter == "'"]


_CONTRACTIONS = {written: word for word in _CONTRACTED for written in _without_one(word)}
_CONTRACTIONS["somebody'd"] = "somebodyd"  # the other way round, as the script has it


def normalise(answer: str) -> str:
    """The answer in lower case, numbers up to ten as digits, without articles and punctuation, contractions whole.

    As the script has it, a mark becomes a space, or nothing where it stands beside a space or the answer has a comma
    between digits; a full stop goes unless a digit follows; apostrophes and colons stay; "none" is 0.
    """
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    joined, text = bool(_THOUSANDS.search(answer)), answer
    for mark in _MARKS:
        beside = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if joined or beside else " ")
    words = [str(_NUMBERS.get(word, word)) for word in _FULL_STOP.sub("", text).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """The mean, over the people asked, of min(1, others who gave this answer / 3), in [0, 1].

    Of ten people three are enough for 0.9, and four for 1. The official script leaves answers as they were written
    where all ten are the same; here they are normalised too, so that "Yes." is right there as well.

    Args:
      references: an answer of every person, at least two.
    """
    mine, others = normalise(answer), [normalise(reference) for reference in references]
    agreed = others.count(mine)
    return sum(min(1.0, (agreed - (other == mine)) / 3) for other in others) / len(others)


def exact_match(answer: str, references: Sequence[str]) -> bool:
    """Whether the answer is one of the references, all normalised."""
    return normalise(answer) in {normalise(reference) for reference in references}
