"""The same tokens give what pycocoevalcap 1.2 gives: its figures for one corpus, and itself where it is installed."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_jax.evaluate.text_metrics.bleu import bleu
from vlm_jax.evaluate.text_metrics.cider import cider_d
from vlm_jax.evaluate.text_metrics.rouge import rouge_l
from vlm_jax.evaluate.text_metrics.tokens import ptb_tokens

CANDIDATES = [
    "a red circle to the left of a large blue square",
    "two dogs run on the beach",
    "a man holds a red umbrella in the rain rain rain",
    "a bowl of soup",
]
REFERENCES = [
    ["a red circle left of a blue square", "a small red circle and a large blue square"],
    ["two dogs are running along the beach", "a pair of dogs on a sandy beach", "dogs on the beach"],
    ["a man walks with a red umbrella in the rain", "someone holds an umbrella"],
    ["soup in a white bowl on a wooden table", "a white bowl of hot soup on the table"],
]

# BLEU-1 to BLEU-4, ROUGE-L, CIDEr-D
FIGURES = [
    0.7682431173663887,
    0.6516842578043617,
    0.5253679076328414,
    0.40311260380302516,
    0.7601731719597873,
    2.4394092232533198,
]

words = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=9)
corpora = st.lists(st.tuples(words | st.just([]), st.lists(words, min_size=1, max_size=4)), min_size=1, max_size=5)


def ours(candidates, references):
    scores = [*bleu(candidates, references), np.mean([rouge_l(c, r) for c, r in zip(candidates, references)])]
    return [*scores, cider_d(candidates, references).mean()]


def split(texts):
    return [text.split() for text in texts]


def test_its_figures_for_one_corpus():
    np.testing.assert_allclose(ours(split(CANDIDATES), [split(r) for r in REFERENCES]), FIGURES, rtol=1e-12)


@settings(max_examples=200, deadline=None)
@given(corpora)
def test_itself(corpus):
    pytest.importorskip("pycocoevalcap.bleu.bleu", reason="needs pycocoevalcap")
    candidates, references = map(list, zip(*corpus))
    np.testing.assert_allclose(ours(candidates, references), theirs(candidates, references), atol=1e-12)


def theirs(candidates, references):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    results = {k: [" ".join(tokens)] for k, tokens in enumerate(candidates)}
    truth = {k: [" ".join(tokens) for tokens in others] for k, others in enumerate(references)}
    scores = Bleu(4).compute_score(truth, results, verbose=0)[0]
    return [*scores, Rouge().compute_score(truth, results)[0], Cider().compute_score(truth, results)[0]]


def test_tokens_of_all_sentences_of_nlvr(shared_data):
    tokenizer = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer", reason="needs pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("needs Java, which pycocoevalcap's tokenizer runs in")
    sentences = pq.read_table(shared_data / "nlvr" / "dev.parquet", columns=["sentence"])["sentence"].to_pylist()
    theirs = tokenizer.PTBTokenizer().tokenize({k: [{"caption": text}] for k, text in enumerate(sentences)})
    assert len(sentences) == 989
    assert [ptb_tokens(text) for text in sentences] == [theirs[k][0].split() for k in range(989)]
