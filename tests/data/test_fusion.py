"""Documents of texts and image tokens: what rows hold, and how spans are moved to their end."""

import dataclasses

import numpy as np
import pytest

from vlm_jax.data import infilling
from vlm_jax.data.fused_vocabulary import Vocabulary
from vlm_jax.data.fusion import Fusion
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.sources.image_codes import Codes
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError

TEXT = Text(length=48, canonicalise="none", bos=True, pad="pad")
IDS = Vocabulary(text=TEXT.vocab_size, codes=16, sentinels=3)
FUSION = Fusion(IDS, grid=2)
BOS, EOS, PAD = TEXT.bos_id, TEXT.eos_id, TEXT.pad_id
IMAGE = ImageTransform(size=8)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Record i has the codes i, i + 1, ..., or a picture of the grey i, and one caption."""

    count: int = 12
    pictures: bool = False
    codes_of: int = 16

    name = "pairs"
    fingerprint = "pairs"
    class_names = ()

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if self.pictures:
            return {"image": np.full((8, 8, 3), index, np.uint8), "text": f"no {index}"}
        return {"image_codes": np.arange(4) + index, "text": f"no {index}"}


@dataclasses.dataclass(frozen=True)
class Encoded(Pairs):
    """Documents with encoded pictures, as `Interleaved` gives them; each other one is a text alone."""

    def __getitem__(self, index):
        return {"parts": [f"no {index}", b"a picture"][: 1 + index % 2]}


@dataclasses.dataclass(frozen=True)
class Written(Pairs):
    """It says what its codes are."""

    codes: Codes | None = None


def pipeline(fusion=FUSION, source=Pairs(), text=TEXT):
    return Pipeline(source, IMAGE, text, threads=0, shuffle=False, fusion=fusion)


def rows_of(count=12, **options):
    return next(pipeline(**options).batches(seed=0, batch_size=count, rows=np.arange(count)))


def words(text):
    return TEXT.model.encode(text)


def test_ids_follow_one_another():
    ids = [IDS.image_begin, IDS.image_end, IDS.break_id, *map(IDS.sentinel, range(3)), *IDS.image([0, 15])]
    text = TEXT.vocab_size
    assert ids == [text, text + 1, text + 2, text + 3, text + 4, text + 5, text + 6, text + 21]
    assert IDS.size == text + 22
    with pytest.raises(UserError, match="image codes 3 to 16: the vocabulary has 0 to 15"):
        IDS.image([3, 16])


@pytest.mark.parametrize("markers", ["image", "break"])
def test_a_pair_is_written_in_either_order(markers):
    batch = rows_of(fusion=dataclasses.replace(FUSION, markers=markers))
    marked = lambda codes: [IDS.image_begin, *codes, IDS.image_end] if markers == "image" else [*codes]
    between = [IDS.break_id] if markers == "break" else []
    orders = []
    for index in range(12):
        image, caption = marked(IDS.image(np.arange(4) + index).tolist()), words(f"no {index}")
        both = [[BOS, *caption, *between, *image, EOS], [BOS, *image, *between, *caption, EOS]]
        row = batch["text"][index].tolist()
        orders.append(next(k for k, each in enumerate(both) if row == each + [PAD] * (48 - len(each))))
        count = len(both[0])
        np.testing.assert_array_equal(batch["text_segment_ids"][index], np.arange(48) < count)
        np.testing.assert_array_equal(batch["target_mask"][index], (np.arange(48) < count) & (np.arange(48) > 0))
    assert 2 <= sum(orders) <= 10 and set(batch) == {"text", "text_segment_ids", "target_mask", "example_id"}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_order_can_be_fixed(share):
    batch = rows_of(fusion=dataclasses.replace(FUSION, caption_first=share))
    assert ((batch["text"][:, 1] == IDS.image_begin) == (share == 0)).all()


def test_pictures_stand_where_their_codes_will():
    fusion = dataclasses.replace(FUSION, pictures=True, caption_first=1.0)
    batch = rows_of(fusion=fusion, source=Pairs(pictures=True))
    at = batch["text_image_ids"][3].nonzero()[0]
    np.testing.assert_array_equal(at, 2 + len(words("no 3")) + np.arange(4))
    assert batch["text"][3, at[0] - 1] == IDS.image_begin and (batch["text"][3, at] == IDS.first_code).all()
    assert (
        batch["target_mask"][3, at].all()
        and (batch["image"][3] == 3).all()
        and batch["image"].shape == (12, 1, 8, 8, 3)
    )


def test_packed_documents_are_those_alone():
    """Every document of a window is whole in one row, its pictures with it, or counted."""
    fusion = dataclasses.replace(FUSION, pictures=True, examples=6, rows=2, per_row=3)
    source = Pairs(pictures=True)
    alone = rows_of(fusion=dataclasses.replace(FUSION, pictures=True), source=source)
    packed = rows_of(4, fusion=fusion, source=source)
    seen = set()
    for row in range(4):
        for segment in range(1, packed["text_segment_ids"][row].max() + 1):
            index = int(packed["example_id"][row, segment - 1, 1])
            mine, its = packed["text_segment_ids"][row] == segment, alone["text_segment_ids"][index] == 1
            for name in ("text", "target_mask"):
                np.testing.assert_array_equal(packed[name][row, mine], alone[name][index, its])
            number = packed["text_image_ids"][row, mine].max()
            assert number == segment and (packed["image"][row, number - 1] == index).all()
            seen.add(index)
    assert len(seen) == fusion.metrics(packed)["packing/documents"] == 12 - fusion.metrics(packed)["packing/left_out"]
    assert len(seen) > 8


def test_parts_of_a_window_have_their_share_of_what_is_left_out():
    fusion = dataclasses.replace(FUSION, examples=6, rows=2, per_row=3)
    batch = rows_of(4, fusion=fusion)
    left_out = lambda rows: fusion.metrics({name: array[rows] for name, array in batch.items()})["packing/left_out"]
    parts = [left_out(slice(row, row + 1)) for row in range(4)]
    assert sum(parts) == left_out(slice(None)) >= 0 and parts == (3 - batch["text_segment_ids"].max(axis=1)).tolist()


def test_rows_do_not_depend_on_how_they_are_split():
    fusion = dataclasses.replace(FUSION, infilled=0.5, examples=4, rows=2, per_row=2)
    whole = rows_of(8, fusion=fusion)
    part = next(pipeline(fusion).batches(seed=0, batch_size=8, rows=np.array([5, 2])))
    for name, array in part.items():
        np.testing.assert_array_equal(array, whole[name][[5, 2]])


def test_a_long_caption_leaves_room_for_its_image_and_the_end():
    codes = np.arange(4)
    for parts in ([words("x" * 99), codes], [codes, words("x" * 99)]):
        document, images = FUSION.document(parts, TEXT)
        assert len(document) == 48 and document.tokens[-1] == EOS and (document.image_ids > 0).sum() == 4
        assert images == [0 if parts[0] is codes else 1]
    document, images = dataclasses.replace(FUSION, images=3).document([words("a")] + [codes, words("b")] * 9, TEXT)
    assert images == [1, 3, 5] and document.tokens.tolist().count(IDS.image_begin) == 3


def infilled(seed, sentinels=3):
    ids = dataclasses.replace(IDS, sentinels=sentinels)
    fusion = Fusion(ids, grid=2, infilled=1.0)
    document, _ = fusion.document([words("abcdef"), np.arange(4), words("gh")], TEXT)
    return document, infilling.infilled(document, ids, np.random.default_rng(seed)), ids


@pytest.mark.parametrize("sentinels", [1, 3])
def test_spans_are_moved_and_images_never_split(sentinels):
    counts = []
    for seed in range(40):
        document, found, ids = infilled(seed, sentinels)
        tokens, masks = found.tokens.tolist(), [ids.sentinel(k) for k in range(sentinels)]
        count = sum(mask in tokens for mask in masks)
        counts.append(count)
        behind = tokens.index(masks[0], tokens.index(masks[0]) + 1)
        begin, end = tokens[:behind], tokens[behind:-1]
        assert tokens[0] == BOS and tokens[-1] == EOS
        for k in range(count):  # put back, the document is what it was
            stop = end.index(masks[k + 1]) if k + 1 < count else len(end)
            span = end[end.index(masks[k]) + 1 : stop]
            assert span
            assert not found.targets[tokens.index(masks[k])]
            at = begin.index(masks[k])
            begin[at : at + 1] = span
        assert [*begin, EOS] == document.tokens.tolist()
        assert found.targets.sum() == len(found) - 1 - count
        image = found.tokens.tolist().index(ids.image_begin)
        np.testing.assert_array_equal(found.tokens[image + 1 : image + 5], ids.image(np.arange(4)))
        np.testing.assert_array_equal(found.image_ids[image : image + 6], [0, 1, 1, 1, 1, 0])
    assert set(counts) == set(range(1, sentinels + 1))


def test_prompts():
    rows = FUSION.prompts(["ab", ""], TEXT)
    assert rows["text"][0, :4].tolist() == [BOS, *words("ab"), IDS.image_begin]
    assert rows["text"][1, :2].tolist() == [BOS, IDS.image_begin] and rows["text_segment_ids"].sum(1).tolist() == [4, 2]
    broken = dataclasses.replace(FUSION, markers="break")
    assert broken.before_image(words("a"), BOS) == [BOS, *words("a"), IDS.break_id]
    assert broken.around_image(BOS) == ([BOS], [IDS.break_id])
    assert FUSION.around_image(BOS) == ([BOS, IDS.image_begin], [IDS.image_end])
    with pytest.raises(UserError, match="62 tokens, and beside an image there is room for 43"):
        FUSION.prompts(["x" * 60], TEXT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"infilled": 1.0, "vocabulary": Vocabulary(300, 4)}, "infilled=1.0 needs masks: set Vocabulary.sentinels"),
        ({"examples": 5, "rows": 2, "per_row": 2}, "examples=5 can never fit into 2 rows of 2"),
        ({"caption_first": 2.0}, "caption_first=2.0 is a fraction"),
        ({"vocabulary": Vocabulary(9, 4)}, "Vocabulary.text=9, and the tokenizer of texts has"),
        ({"grid": 7}, "length=48 has no room for an image of 49 tokens and a text; at least 54 are needed"),
        ({"markers": "none"}, "markers='none': wanted is 'image' or 'break'"),
    ],
)
def test_bad_values(change, message):
    with pytest.raises(UserError, match=message):
        pipeline(dataclasses.replace(FUSION, **change))


def test_texts_without_a_begin():
    with pytest.raises(UserError, match="set bos=True, eos='sticky' and pad_side='right'"):
        pipeline(text=dataclasses.replace(TEXT, bos=False))


def test_codes_that_the_decoder_does_not_have():
    with pytest.raises(
        UserError, match=r"12 records in a row are unreadable.*image codes 0 to 3, where there are 0 to 1"
    ):
        rows_of(fusion=dataclasses.replace(FUSION, vocabulary=dataclasses.replace(IDS, codes=2)))
    with pytest.raises(UserError, match="4 image codes where 9 are wanted"):
        rows_of(fusion=dataclasses.replace(FUSION, grid=3))
    with pytest.raises(UserError, match="has no 'image_codes'"):
        rows_of(source=Pairs(pictures=True))
    with pytest.raises(UserError, match=r"'pairs' has pictures, and image codes are wanted: set Fusion.pictures=True"):
        rows_of(source=Encoded())

    with pytest.raises(UserError, match="has 4 codes of 512 for an image, the decoder takes 4 of 16"):
        pipeline(source=Written(codes=Codes((2, 2), 512, 8, "vq")))
    with pytest.raises(UserError, match="images of 1 x 1 x 4 codes, the last of them of one place: one code a place"):
        pipeline(source=Written(codes=Codes((1, 1, 4), 16, 8, "rq")))
