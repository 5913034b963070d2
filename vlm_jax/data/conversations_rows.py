"""Rows of training batches that hold conversations, one each or packed."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import numpy as np

from vlm_jax.data.conversation_reader import Conversation, ConversationReader
from vlm_jax.data.conversations import pair
from vlm_jax.data.rows import RowGenerator, Rows, halves


class ConversationRows(Rows):
    """Makes the rows of any global row indices; see `vlm_jax.data.conversations.Conversations`. It pickles.

    `example_id` is that of the conversation, where each row holds one; else [b, per_row, 2], those of the row's
    conversations, zero where there is none.
    """

    def __init__(self, pipeline, seed, apportionment):
        super().__init__(pipeline, seed, apportionment)
        pipeline.conversations.chat(pipeline.text).check()

    @property
    def reader(self) -> Callable[..., ConversationReader]:
        conversations, text = self._pipeline.conversations, self._pipeline.text
        return functools.partial(ConversationReader, conversations=conversations, text=text)

    @property
    def spec(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape of one row and type of each array."""
        pipeline = self._pipeline
        conversations = pipeline.conversations
        ids = (2,) if self._alone else (conversations.per_row, 2)
        return conversations.spec(pipeline.image.size, pipeline.text.length) | {"example_id": (ids, "uint32")}

    @property
    def _alone(self) -> bool:
        return self._pipeline.conversations.examples == self._pipeline.conversations.rows == 1

    def __call__(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray], list[tuple[int, str, str, str]]]:
        """The rows, and place, source, key and reason of each conversation in them whose own record was unreadable.

        A conversation that is in no row is told with the first row of its window.
        """
        conversations, text = self._pipeline.conversations, self._pipeline.text
        batch = conversations.blank(len(indices), self._pipeline.image.size, text)
        batch["example_id"] = np.zeros((len(indices), *self.spec["example_id"][0]), np.uint32)
        windows, slots = np.divmod(indices, conversations.rows)
        numbers = np.unique(windows)
        examples = self.examples(
            (numbers[:, None] * conversations.examples + np.arange(conversations.examples)).ravel()
        )
        generator, unreadable = RowGenerator(self._seed), []
        for number in numbers.tolist():
            start = number * conversations.examples
            parts, found, failures = zip(*itertools.islice(examples, conversations.examples))
            laid = [
                self._laid(part, conversation, generator(start + place))
                for place, (part, conversation) in enumerate(zip(parts, found))
            ]
            plan = conversations.plan(laid, text)
            left_out = set(range(conversations.examples)).difference(*plan)
            for at in np.flatnonzero(windows == number).tolist():
                row = {name: array[at] for name, array in batch.items()}
                held = plan[slots[at]]
                for slot, place in enumerate(held):
                    rng = generator(start + place)
                    rng.random()  # the caption's
                    conversations.write(row, laid[place], found[place].images, parts[place].augment, rng)
                    row["example_id"].reshape(-1, 2)[slot] = halves(np.array([start + place]))[0]
                told = held + (sorted(left_out) if slots[at] == 0 else [])
                unreadable += [(at, parts[place].name, *failures[place]) for place in told if failures[place]]
        return batch, unreadable

    def _laid(self, part, conversation: Conversation, rng: np.random.Generator):
        if conversation.laid is not None:
            return conversation.laid
        caption = part.choose(conversation.captions, rng.random())
        turns = pair(caption, len(conversation.images))
        # Captions that are joined may be longer than each, which fits.
        return self._pipeline.conversations.laid(turns, conversation.images, self._pipeline.text, overlong="truncate")
