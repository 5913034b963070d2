"""Conversations in rows: what is kept, where it is cut, and what of it is learnt."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_jax.data.chat import Piece
from vlm_jax.data.conversation_images import Size
from vlm_jax.data.conversation_layout import Room, lay, too_long

PAD = 0
# Pieces: an image, or the number of tokens and whether they are learnt.
shapes = st.lists(st.one_of(st.none(), st.tuples(st.integers(1, 8), st.booleans())), min_size=1, max_size=12)
rooms = st.builds(Room, st.integers(1, 60), st.integers(0, 4), st.integers(0, 40))


def numbered(shape, sizes) -> tuple[list[Piece], list[int]]:
    """Pieces whose tokens say where they are, and the whole conversation: -n at the places of image n."""
    counter, images = itertools.count(1), itertools.count()
    pieces, whole = [], []
    for part in shape:
        tokens = None if part is None else tuple(itertools.islice(counter, part[0]))
        pieces.append(Piece(tokens, part is not None and part[1]))
        if tokens is None:
            number = next(images)
            tokens = [-1 - number] * sizes[number].places
        whole += tokens
    return pieces, whole


@settings(max_examples=300, deadline=None)
@given(shape=shapes, room=rooms, data=st.data())
def test_a_row_holds_the_begin_of_a_conversation(shape, room, data):
    count = shape.count(None)
    size = st.builds(Size, st.integers(1, 12), st.integers(0, 16))
    sizes = data.draw(st.lists(size, min_size=count, max_size=count))
    pieces, whole = numbered(shape, sizes)
    laid, is_whole = lay(pieces, sizes, room, PAD)
    assert len(laid.tokens) == len(laid.targets) == len(laid.image_ids)
    assert all(takes <= has for takes, has in zip(laid.takes, room))
    row = np.where(laid.image_ids > 0, -laid.image_ids, laid.tokens).tolist()
    assert row == whole[: len(row)] and (laid.tokens[laid.image_ids > 0] == PAD).all()
    fits = len(whole) <= room.tokens and count <= room.images and sum(s.patches for s in sizes) <= room.patches
    assert is_whole == fits == (len(row) == len(whole) and len(laid.patches) == count)
    for number in range(1, len(laid.patches) + 1):  # contiguous, and as many as the image takes
        places = np.flatnonzero(laid.image_ids == number)
        assert len(places) == sizes[number - 1].places and np.ptp(places) == len(places) - 1
    learnt = {token for piece in pieces if piece.target for token in piece.tokens} - {whole[0]}
    assert set(laid.tokens[laid.targets].tolist()) == learnt & set(row)
    if not is_whole and len(row) < room.tokens:  # it ends before an image
        assert whole[len(row)] < 0
    cut = laid.until_last_answer()
    assert cut.targets.sum() == laid.targets.sum() and cut.tokens.tolist() == laid.tokens[: len(cut.tokens)].tolist()
    assert cut.targets[-1:].all() and len(cut.patches) == cut.image_ids.max(initial=0)
    if laid.targets.any():
        last, before = laid.last_answer().targets, laid.targets
        start = int(np.flatnonzero(last)[0])
        assert last[start : len(cut.tokens)].all() and not last[len(cut.tokens) :].any() and not last[:start].any()
        assert not before[start - 1]


@pytest.mark.parametrize(
    "sizes, message",
    [
        ([], "it takes 9 tokens, and a row has room for 8"),
        ([Size(5)], "it takes 14 tokens, 1 images, and a row has room for 8, 1"),
        ([Size(5, 4), Size(1, 3)], "it takes 15 tokens, 2 images, 7 patches, and a row has room for 8, 1, 6"),
    ],
)
def test_what_is_too_long_is_told(sizes, message):
    pieces = [Piece((1,) * 9, True), *(Piece(None, False) for _ in sizes)]
    assert too_long(pieces, sizes, Room(8, 1, 6)) == message
