"""Questions about images, answered by a model whose every answer is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.evaluate.toy import IMAGE, Source, picture
from vlm_jax.data.conversations import Conversations
from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError
from vlm_jax.evaluate.answers import Answers
from vlm_jax.mesh import Layout

TEXT = Text(length=48, canonicalise="none", eos="none", pad="pad")
QUESTIONS = (
    ("what colour?", "red", "colour"),
    ("what colour?", "red", "colour"),
    ("how many?", "two", "count"),
    ("how many?", "one", "count"),
    ("how many?", "two", "count"),
)


def record(k, question, answer, type):
    messages = [{"role": "user", "content": f"<image>\n{question}"}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": [picture([k / 255])], "type": type, "key": f"k{k}"}


RECORDS = tuple(record(k, *asked) for k, asked in enumerate(QUESTIONS))


def evaluator(records=RECORDS, **changes):
    options = dict(conversations=Conversations("plain"), image=IMAGE, text=TEXT)
    return Answers(source=Source(tuple(records)), **options | changes)


def mesh(devices=1):
    return Layout().make(jax.devices()[:devices])


def writes(*answers, length=12):
    """Answer k to a question about a picture whose first byte is k; after its end token there may be anything."""
    ends = dataclasses.replace(TEXT, length=length, eos="plain", pad="eos")
    rows = np.array(ends(answers))
    rows[:, -1] = ord("x") + 4
    rows = jnp.asarray(rows)

    @jax.jit
    def answer(batch):
        assert "target_mask" not in batch and batch["text"].shape[1] == TEXT.length
        asks = batch["text_segment_ids"].sum(1) > 3
        return jnp.where(asks[:, None], rows[batch["image"][:, 0, 0, 0, 0]], 0)

    return {"answer": answer}


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_known_answers_for_any_batch_size_and_devices(devices, batch_size):
    result = evaluator(batch_size=batch_size)(writes("red", "Blue", "2", "two", "TWO."), mesh(devices))
    assert result["accuracy"] == 3 / 5 and result["examples"] == 5
    assert result["accuracy/colour"] == 1 / 2 and result["majority/colour"] == 1
    assert result["accuracy/count"] == pytest.approx(2 / 3)
    rows = result.rows["answers"]
    assert rows["answer"].tolist() == ["red", "Blue", "2", "two", "TWO."] and rows["index"].tolist() == [0, 1, 2, 3, 4]
    right, wrong = result.artifacts["answers"].rows
    assert right[0] == "right: 3 of 5" and wrong[1][0][1] == "what colour? Blue (reference: red)"


def test_records_that_cannot_be_read_are_left_out():
    class Broken(Source):
        def __getitem__(self, i):
            if i in (0, 3):
                raise UnreadableRecord("toy", str(i), "damaged")
            return self.records[i]

    answers = writes("", "red", "two", "", "one")
    broken = dataclasses.replace(evaluator(batch_size=2), source=Broken(RECORDS))
    result = broken(answers, mesh())
    assert result.rows["answers"]["index"].tolist() == [1, 2, 4] and result["accuracy"] == pytest.approx(2 / 3)
    with pytest.raises(UserError, match="none of the 1 records of toy can be read"):
        dataclasses.replace(broken, source=Broken(RECORDS[:1]))(answers, mesh())


def test_the_commonest_answer_may_be_that_of_the_training_set():
    train = Source(tuple(record(k, *QUESTIONS[3]) for k in range(2)))
    result = evaluator(train=train)(writes("", "", "", "", ""), mesh())
    assert result["majority/count"] == pytest.approx(1 / 3) and result["majority/colour"] == 0


def likeliest(table):
    """The log-probability of choice "true" and "false" about picture k: `table[k]`."""
    table = jnp.asarray(np.array(table, np.float32))

    @jax.jit
    def score(batch):
        first = jnp.take_along_axis(batch["text"], batch["target_mask"].argmax(1)[:, None], 1)[:, 0]
        return table[batch["image"][:, 0, 0, 0, 0], jnp.where(first == ord("t") + 4, 0, 1)]

    return {"score": score}


@pytest.mark.parametrize("devices", [1, 8])
def test_the_likeliest_choice_is_the_answer(devices):
    records = [record(k, "it is so", answer, "") for k, answer in enumerate(["true", "false", "true", "true"])]
    evaluate = evaluator(records, choices=("true", "false"), batch_size=3)
    result = evaluate(likeliest([[-1, -2], [-5, -4], [-3, -1], [-2, -2]]), mesh(devices))
    assert result.rows["answers"]["answer"].tolist() == ["true", "false", "false", ""]  # a tie is no answer
    assert result["accuracy"] == 1 / 2 and result["majority"] == 3 / 4 and result["over_majority"] == -1 / 4


def test_several_turns_answers_and_parts():
    """The last question counts; `answers` are the references, and a conversation may end with its question."""
    talk = [
        *RECORDS[0]["messages"],
        {"role": "user", "content": [{"type": "text", "text": "and "}, {"type": "text", "text": "its size?"}]},
    ]
    of_ten = {**RECORDS[0], "messages": talk, "answers": ["big"] * 4 + ["large"] * 6}
    result = evaluator([of_ten], metric="vqa_accuracy")(writes("big"), mesh())
    assert result["vqa_accuracy"] == 1 and result["majority"] == 1
    assert result.artifacts["answers"].rows[0][1][0][1] == "and its size? big (reference: big)"


def test_texts_in_images_and_records_without_one():
    records = [{k: v for k, v in r.items() if k != "images"} for r in RECORDS[2:3]]
    records[0]["messages"] = [{"role": "user", "content": "read"}, {"role": "assistant", "content": "two"}]
    answer = lambda batch: jnp.asarray(dataclasses.replace(TEXT, length=6)(["tow"]))
    plain = evaluator(records, conversations=Conversations("plain", images=None), metric="cer")
    result = plain({"answer": answer}, mesh())
    assert result["cer"] == pytest.approx(2 / 3) and result["exact_match"] == 0
    assert result.artifacts["answers"].rows == []


def test_mistakes():
    with pytest.raises(UserError, match="gives no 'answer'"):
        evaluator()({"score": None}, mesh())
    with pytest.raises(UserError, match="gives no 'score'"):
        evaluator(choices=("a", "b"))({"answer": None}, mesh())
    with pytest.raises(UserError, match="metric='exact'"):
        evaluator(metric="exact")
    with pytest.raises(UserError, match="nothing to choose"):
        evaluator(choices=("a",))
    with pytest.raises(UserError, match=r"record k0 of toy lacks answers of several people"):
        evaluator(metric="vqa_accuracy")(writes(*"abcde"), mesh())
    asked = {**RECORDS[0], "messages": RECORDS[0]["messages"][:1]}
    with pytest.raises(UserError, match="record k0 of toy lacks an answer at its end"):
        evaluator([asked])(writes("a"), mesh())
    with pytest.raises(UserError, match="record k0"):
        evaluator(length=8)(writes(*"abcde"), mesh())
