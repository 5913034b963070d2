"""Tokens of captions: what Stanford's PTBTokenizer with pycocoevalcap's list of punctuation gives for these."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_jax.evaluate.text_metrics.tokens import ptb_tokens

# made with `java edu.stanford.nlp.process.PTBTokenizer -preserveLines -lowerCase`, CoreNLP 3.4.1
STANFORD = {
    "A man's dog isn't on the colour-coded grey sofa, don't you think?": (
        "a man 's dog is n't on the colour-coded grey sofa do n't you think"
    ),
    'It\'s a "black and white" cat (sleeping) -- on the T.V. set...': (
        "it 's a black and white cat -lrb- sleeping -rrb- on the t.v. set"
    ),
    "The U.S. flag, at 3:30 p.m. on Dr. Smith's house; cannot gonna wanna": (
        "the u.s. flag at 3:30 p.m. on dr. smith 's house can not gon na wan na"
    ),
    "two people \u2013 one standing \u2014 other sitting\u2026 \u201cquoted\u201d \u2018text\u2019 café": (
        "two people one standing other sitting quoted text café"
    ),
    "100,000 people; 1,2,3; 3.14; .5 cm; 90's; 1990s; '90s": "100,000 people 1,2,3 3.14 .5 cm 90 's 1990s '90s",
    "A boys' room. the dogs' 'quoted' thing I'm we've they'll he'd you're": (
        "a boys room the dogs quoted thing i 'm we 've they 'll he 'd you 're"
    ),
    "no. it is not. no. 7 is, no.1": "no it is not no. 7 is no. 1",
    "!!! wow!? hello!. cat,dog cat;dog cat/dog cat&dog AT&T w/ a": (
        "!!! wow !? hello cat dog cat dog cat/dog cat & dog at&t w / a"
    ),
    "E-mail 3 o'clock rock 'n' roll ma'am O'Brien ain't 2% #1 5-6-7": (
        "e-mail 3 o'clock rock 'n' roll ma'am o'brien ai n't 2 % # 1 5-6-7"
    ),
    "a man...and a dog a---b a - b he'll've gotta": "a man and a dog a b a b he 'll 've got ta",
}


@pytest.mark.parametrize("text", STANFORD)
def test_is_stanfords(text):
    assert ptb_tokens(text) == STANFORD[text].split()


@given(st.text())
def test_any_text_has_tokens_without_spaces_or_capitals(text):
    tokens = ptb_tokens(text)
    assert all(token and not token.isspace() and token == token.lower() for token in tokens)
    assert ptb_tokens(f" {text}\n") == tokens


@given(st.lists(st.from_regex(r"[a-z]{3,8}", fullmatch=True).filter(lambda w: w[-2:] not in ("na", "ta", "me", "ot"))))
def test_plain_words_are_tokens(words):
    assert ptb_tokens(" ".join(words) + ".") == words or words[-1:] == ["etc"]
