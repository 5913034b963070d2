"""Chat templates: the text that each gives, its tokens, and which of them are answers."""

from __future__ import annotations

import functools
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_jax.data import tokenizers
from vlm_jax.data.chat import Chat
from vlm_jax.data.chat_template import IMAGE, TEMPLATES, Template, Turn, template_of
from vlm_jax.data.reader import UnreadableText
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError

TALK = [
    {"role": "user", "content": "<image>\nWhat is this?"},
    {"role": "assistant", "content": "A dog."},
    {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "image"}]},
    {"role": "assistant", "content": "A cat."},
]
ASSISTANT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# As the models' own tokenizers and code write it; [...] is what is learnt.
WRITTEN = {
    "plain": "<image>\nWhat is this?\n[A dog.<eos>]And <image>\n[A cat.<eos>]",
    "vicuna": f"<bos>{ASSISTANT} USER: <image>\nWhat is this? ASSISTANT:[ A dog.<eos>]"
    "USER: And <image> ASSISTANT:[ A cat.<eos>]",
    "llama2": "<bos>[INST] <image>\nWhat is this? [/INST][ A dog. <eos>]<bos>[INST] And <image> [/INST][ A cat. <eos>]",
    "chatml": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<image>\nWhat is this?<|im_end|>\n<|im_start|>assistant\n[A dog.<|im_end|>]\n"
    "<|im_start|>user\nAnd <image><|im_end|>\n<|im_start|>assistant\n[A cat.<|im_end|>]\n",
    "smollm": "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n<image>\nWhat is this?<|im_end|>\n<|im_start|>assistant\n[A dog.<|im_end|>]\n"
    "<|im_start|>user\nAnd <image><|im_end|>\n<|im_start|>assistant\n[A cat.<|im_end|>]\n",
}
SENTENCES = ["A chat between a curious user and an assistant.", "USER: What is this? ASSISTANT: A dog.", "And a cat."]


@functools.cache
def tokenizer(folder, kind: str) -> str:
    """Path of a tokenizer with the tokens of all templates, "bytes" where its kind is that."""
    control = sorted({token for template in TEMPLATES.values() for token in template.tokens})
    path = folder / kind
    if kind == "x.model":  # adds a space to texts, spells in bytes what it lacks
        path.write_bytes(tokenizers.train([*SENTENCES, *(f"{i} {i + 1} w{i}" for i in range(1000))], 1000, control))
    elif kind == "x.json":  # of bytes, as Qwen's and SmolLM's: no space is added
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        special = ["<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        made.train_from_iterator(SENTENCES * 20, trainer)
        made.save(str(path))
    return "bytes" if kind == "bytes" else str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers")


def chat(folder, kind: str, template: str, **options) -> Chat:
    return Chat(TEMPLATES[template], Text(tokenizer=tokenizer(folder, kind), canonicalise="none", **options))


def marked(items) -> str:
    return "".join(
        f"[{text}]" if target else text
        for target, text in (
            (t, "".join(i.text for i in run)) for t, run in itertools.groupby(items, lambda i: i.target)
        )
    )


KINDS = [("bytes", "plain"), ("bytes", "vicuna"), ("bytes", "llama2")]
KINDS += [(kind, template) for kind in ("x.model", "x.json") for template in TEMPLATES]


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_a_template_writes(template):
    assert marked(TEMPLATES[template].items(TALK)) == WRITTEN[template]


def test_llama2_puts_the_system_text_into_the_first_turn():
    items = TEMPLATES["llama2"].items([{"role": "system", "content": "Be kind."}, *TALK[2:]])
    assert marked(items) == "<bos>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nAnd <image> [/INST][ A cat. <eos>]"


def test_a_conversation_s_own_system_text_goes_before_the_template_s():
    items = TEMPLATES["chatml"].items([{"role": "system", "content": "Be kind."}, *TALK[2:]])
    assert marked(items).startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n")


@pytest.mark.parametrize("kind, template", KINDS)
def test_tokens_say_what_the_template_writes(folder, kind, template):
    """Piece by piece, and with the names of its tokens: the text above; the mask covers the answers and their ends."""
    made = chat(folder, kind, template)
    made.check()
    model = made.text.model
    items, pieces = made.template.items(TALK), made(TALK, images=2)
    assert [piece.target for piece in pieces] == [item.target for item in items]
    for item, piece in zip(items, pieces, strict=True):
        if item.kind == "text":
            found = model.decode(piece.tokens)
            assert found == (item.text.removeprefix(" ") if model.adds_space and item.target else item.text)
        else:
            assert piece.tokens == (None if item.text == IMAGE else (made.token(item.text),))
    learnt = [piece.tokens for piece in pieces if piece.target]
    assert learnt[1::2] == [(made.end_id,)] * 2 and len(learnt) == 4


@pytest.mark.parametrize("kind, template", KINDS)
def test_tokens_are_those_of_the_whole_text(folder, kind, template):
    """A tokenizer that takes texts between tokens and images whole, as those of these models do, gives the same."""
    made = chat(folder, kind, template)
    for target_starts_a_text, messages in ((template in ("plain", "chatml", "smollm"), TALK), (True, TALK[:1])):
        tokens: list = []
        run = ""
        for item in [*made.template.items(messages), None]:
            if item is None or item.kind != "text" or (item.target and target_starts_a_text):
                tokens += made.text.model.spell(run) if run else []
                run = ""
            if item is not None and item.kind == "text":
                run += item.text
            elif item is not None:
                tokens += [IMAGE if item.kind == "image" else made.token(item.text)]
        images = sum(token == IMAGE for token in tokens)
        pieces = made(messages, images=images)
        assert [t for piece in pieces for t in ([IMAGE] if piece.tokens is None else piece.tokens)] == tokens


@pytest.mark.parametrize("kind, template", KINDS)
def test_a_prompt_is_how_the_conversation_begins(folder, kind, template):
    made = chat(folder, kind, template)
    whole, prompt = made(TALK, images=2), made(TALK[:3], images=2, prompt=True)
    assert whole[: len(prompt)] == prompt and whole[len(prompt)].target
    assert not any(piece.target for piece in prompt[-3:])


contents = st.text(st.sampled_from("ab \n<>/s|[]_INTimendstarboxeoug"), max_size=20)
specials = st.sampled_from(["</s>", "<s>", "<bos>", "<eos>", "<|im_end|>", "<|im_start|>assistant\n", "<|endoftext|>"])


@settings(max_examples=60, deadline=None)
@given(
    content=st.tuples(contents, specials, contents).map("".join),
    answer=contents.filter(str.strip),
    kind=st.sampled_from(KINDS),
)
def test_no_text_becomes_a_token(folder, content, answer, kind):
    made = chat(folder, *kind)
    messages = [
        {"role": "user", "content": content.replace(IMAGE, "")},
        {"role": "assistant", "content": answer + "</s><|im_end|>"},
    ]
    items, pieces = made.template.items(messages), made(messages, images=0)
    control = {made.token(item.text) for item in items if item.kind == "token"} - {made.text.model.spell("\n")[-1]}
    for item, piece in zip(items, pieces, strict=True):
        assert item.kind == "token" or not control & set(piece.tokens)
    assert sum(token == made.end_id for piece in pieces if piece.target for token in piece.tokens) == 1


def test_the_begin_token_that_a_tokenizer_s_models_want(folder):
    for template, count in (("plain", 1), ("vicuna", 1), ("llama2", 2)):
        pieces = chat(folder, "bytes", template, bos=True)(TALK, images=2)
        assert pieces[0].tokens == (3,)
        assert sum(piece.tokens == (3,) for piece in pieces) == count


def test_content_is_canonicalised_and_the_template_is_not(folder):
    made = Chat(TEMPLATES["vicuna"], Text(canonicalise="siglip"))
    decode = made.text.model.decode
    pieces = made([{"role": "user", "content": "What's THIS?"}, {"role": "assistant", "content": "It's"}], images=0)
    assert decode(pieces[1].tokens).endswith("USER: whats this ASSISTANT:") and decode(pieces[2].tokens) == " its"


USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    "messages, images, why",
    [
        (
            [USER, {"role": "asistant", "content": "b"}],
            0,
            r"turn 2 has the role 'asistant': did you mean 'assistant'\?",
        ),
        ([USER, {"role": ["user"], "content": "b"}], 0, r"turn 2 has the role \['user'\]"),
        ([USER, {"role": "assistant", "content": " \n"}], 0, "turn 2, of 'assistant', is an empty answer"),
        ([USER, {"role": "assistant", "content": "?!"}], 0, "turn 2, of 'assistant', is an empty answer"),
        ([USER, {"role": "assistant", "content": None}], 0, "turn 2, of 'assistant': its content is of type NoneType"),
        ([USER, {"role": "system", "content": "c"}], 0, "turn 2 is of 'system', which only the first turn can be"),
        ([USER, ANSWER], 1, r"it has 1 images and 0 places \(<image>\) for them"),
        ([{"role": "user", "content": "<image> <image>"}, ANSWER], 1, "it has 1 images and 2 places"),
        ([USER, {"role": "assistant", "content": [{"type": "image"}]}], 1, "turn 2, of 'assistant', has an image"),
        ([{"role": "user", "content": [{"type": "imgae"}]}], 0, "a part is of type 'imgae': did you mean 'image'"),
        ([{"role": "user", "content": [{"type": "text"}]}], 0, "a part of type 'text' has no 'text'"),
        ([{"role": "user", "content": ["a"]}], 0, "a part is of type 'str'"),
        ([{"role": "user", "content": "caf\udce9"}], 0, "turn 1, of 'user': its text is not UTF-8"),
        (["a"], 0, "turn 1 is of type str, wanted are role and content"),
    ],
)
def test_what_is_wrong_with_a_conversation_is_told(messages, images, why):
    with pytest.raises(UnreadableText, match=why):
        Chat(TEMPLATES["plain"], Text())(messages, images=images)


def test_an_answer_may_say_image():
    (answer,) = (
        p
        for p in Chat(TEMPLATES["plain"], Text(canonicalise="none"))(
            [USER, {"role": "assistant", "content": "<image>"}], images=0
        )
        if p.target and len(p.tokens) > 1
    )
    assert tokenizers.Bytes().decode(answer.tokens) == "<image>"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: template_of("vicunna"), r"^template='vicunna': did you mean 'vicuna'\?$"),
        (lambda: Template({"user": Turn(), "asistant": Turn()}), r"has a role 'asistant': did you mean 'assistant'\?$"),
        (lambda: Template({"user": Turn()}), r"^Template\.turns has no 'assistant'"),
        (lambda: Template({"user": Turn(), "assistant": Turn("", "\n")}), "has no token that ends an answer"),
        (lambda: Template(TEMPLATES["chatml"].turns), "has no token that ends an answer"),
        (lambda: Chat(TEMPLATES["chatml"], Text()).check(), r"^tokenizer='bytes' has no token '<\|im_start\|>'"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_tokenizer_that_cannot_write_a_template_is_refused(tmp_path):
    (tmp_path / "x.model").write_bytes(tokenizers.train(["a red dog"] * 20, 60))
    for template, why in (("vicuna", "cannot write 'A chat"), ("plain", r"has no token '\\n'")):
        with pytest.raises(UserError, match=why):
            Chat(TEMPLATES[template], Text(tokenizer=str(tmp_path / "x.model"))).check()
    (tmp_path / "y.model").write_bytes(tokenizers.train(["a red dog"] * 20, 60, TEMPLATES["plain"].tokens))
    made = Chat(TEMPLATES["plain"], Text(tokenizer=str(tmp_path / "y.model")))
    made.check()
    tokens = [
        piece.tokens
        for piece in made([{"role": "user", "content": "a red dog"}, {**ANSWER, "content": "red"}], images=0)
    ]
    assert [len(part) for part in tokens] == [3, 1, 1, 1] and tokens[2][0] == tokens[0][1]


def test_a_template_is_bound_in_a_recipe():
    from vlm_jax import config
    from vlm_jax.config import bind

    turn = functools.partial(bind, "data.chat_template.Turn")
    turns = dict(user=turn(before="Q: ", after="\n"), assistant=turn(before="A: ", after="<eos>"))
    made = config.build(bind("data.chat_template.Template", turns=turns))
    assert marked(made.items([USER, ANSWER])) == "Q: a\nA:[ b<eos>]"
