"""Models that write what an image shows: CoCa, CapPa, TrOCR, and the CNN with an LSTM."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from vlm_jax.errors import UserError
from vlm_jax.generate import Sampling
from vlm_jax.library import asking
from vlm_jax.library.asking import Asked
from vlm_jax.library.batches import Images, power_of_two
from vlm_jax.library.model import Model
from vlm_jax.models.captioner import Captions
from vlm_jax.models.coca import CoCa
from vlm_jax.models.two_tower import TwoTower
from vlm_jax.nn import shard
from vlm_jax.tasks import next_token
from vlm_jax.tasks.captioning import Captioning
from vlm_jax.tasks.image_to_text import ImageToText


def writes_captions(network: Any) -> bool:
    """Whether it is a network that `CaptionModel` is for."""
    return isinstance(network, CoCa) or (isinstance(network, Captions) and not isinstance(network, TwoTower))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CaptionModel(Model):
    """A `Model` that also writes. One without a text tower embeds images alone.

    Attributes (besides those of `Model`):
      sampling: how captions are written unless `generate` is told otherwise; the run's.
      begin_id: the token that they begin with.
    """

    network: CoCa | Captions
    sampling: Sampling = Sampling()
    begin_id: int | None = None

    @functools.cached_property
    def predict(self) -> dict[str, Callable]:
        """Jitted functions by name: those of the task, see `tasks.captioning` and `tasks.image_to_text`."""
        return self._task(self.sampling).predict(self.variables)

    def generate(self, image: Images, prompt: Any = None, *, seed: int = 0, **options: Any) -> str | list[str]:
        """What the model writes about an image, or a list of it for a list of images or prompts.

        Args:
          image: a picture or several, as for `encode_image`.
          prompt: how the caption begins; the rest of it is returned.
          seed: of what is drawn at a temperature.
          options: `max_tokens`, `temperature`, `top_k`, `top_p`, `beams`, `length_penalty`, see `generate.Sampling`;
            those of the run unless given. A caption is at most as long as the model's texts.

        Raises:
          UserError: unreadable images, options that do not fit, or a beginning that leaves no room.
        """
        sampling = asking.sampling(self.sampling, options)
        questions, several = asking.asked(image, prompt)
        write = self._task(sampling).predict(self.variables)["generate"]
        root = jax.random.key(seed)

        def one(batch: dict, start: int) -> jax.Array:
            key = jax.random.fold_in(root, start) if sampling.temperature else None
            return write(batch["image"], batch["text"], key)

        stops = sampling.stop or (() if self._text.eos_id is None else (self._text.eos_id,))
        rows = [[*self._begin(), *self._tokens(question.prompt)] for question in questions]
        out: list[str] = [""] * len(questions)
        for length in sorted({self._padded(len(row)) for row in rows}):
            chosen = [k for k, row in enumerate(rows) if self._padded(len(row)) == length]

            prepare = functools.partial(self._rows, questions, rows, length)
            tokens = self._batches.run(one, chosen, prepare)
            for k, caption in zip(chosen, asking.decoded(self.text, tokens, stops)):
                out[k] = caption
        return out if several else out[0]

    def score(self, image: Images, prompt: Any = None, answer: Any = None) -> float | list[float]:
        """The log-likelihood of `answer` and the token that ends it, after `prompt`; a list where one is given.

        Prompt and answer are tokenized apart. Raises UserError, also where they are longer than the model's texts.
        """
        questions, several = asking.asked(image, prompt, answer)
        given, rows = [], []
        for question in questions:
            if question.answer is None:
                raise UserError("score: which answer? score(image, prompt, answer) takes a text or a list.")
            begin = [*self._begin(), *self._tokens(question.prompt)]
            given.append(len(begin))
            rows.append([*begin, *self._tokens(question.answer), self._end])
        task = self._task(self.sampling)

        def prepare(part: Sequence[int]) -> dict[str, np.ndarray]:
            arrays = self._rows(questions, rows, self._text.length, part)
            return arrays | {"given": np.array([given[k] for k in part], np.int32)}

        one = lambda batch, start: _score(task, self.mesh, self.variables, **batch)
        found = self._batches.run(one, range(len(rows)), prepare).tolist() if rows else []
        return found if several else found[0]

    def _task(self, sampling: Sampling) -> Captioning | ImageToText:
        kind = Captioning if isinstance(self.network, CoCa) else ImageToText
        return kind(self.network, bos_id=self.begin_id, sampling=sampling)

    @property
    def _text(self) -> Any:
        """What reads texts in the network."""
        return self.network.text if isinstance(self.network, CoCa) else self.network.decoder

    @property
    def _end(self) -> int:
        end = self._text.eos_id if self._text.eos_id is not None else self.text.eos_id
        if end is None:
            raise UserError(f"{self.source}: its tokenizer has no end token, which a scored answer ends with.")
        return end

    def _begin(self) -> list[int]:
        if self.text is None:
            raise UserError(self.no_text)
        if self.begin_id is None:
            raise UserError(f"{self.source}: its tokenizer has no begin token, which captions begin with.")
        return [self.begin_id]

    def _tokens(self, written: Any) -> list[int]:
        if written is not None and not isinstance(written, str):
            raise UserError("a captioner's prompt is the beginning of a text, and no messages.")
        return self.text.model.encode(self.text.canonical(written)) if written else []

    def _padded(self, length: int) -> int:
        """Beginnings of this many tokens are written together. Where padding is the end token it cannot be told from
        it: only those of one length are."""
        if self._text.pad_id is None or self._text.pad_id == self._text.eos_id:
            return length
        return max(length, min(power_of_two(length), self._text.length // 2))

    def _rows(
        self, questions: Sequence[Asked], rows: Sequence[list[int]], length: int, part: Sequence[int]
    ) -> dict[str, np.ndarray]:
        """A batch of those of `part`."""
        text = np.full((len(part), length), self._text.pad_id or 0, np.int32)
        for place, k in zip(text, part):
            if len(questions[k].images) != 1:
                raise UserError(f"a captioner takes one image at a time, not {len(questions[k].images)}.")
            if len(rows[k]) > length:
                raise UserError(f"a text of {len(rows[k])} tokens: the model has length={length}.")
            place[: len(rows[k])] = rows[k]
        return {"image": self._read([questions[k].images[0] for k in part]), "text": text}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(
    task: Captioning | ImageToText,
    mesh: Mesh,
    variables: dict[str, Any],
    image: UInt8[Array, "n height width 3"],
    text: Int[Array, "n time"],
    given: Int[Array, " n"],
) -> Float[Array, " n"]:
    """Of each text the log-likelihood of the tokens after the first `given`."""
    model = task.model
    with shard.under(mesh):
        context = model.encode_image(variables, image)[1]["tokens"]
        read = model.encode_text(variables, text)[1]["tokens"] if isinstance(model, CoCa) else text
        hidden = model.decode(variables, context, read[:, :-1])
        counts = 1 + jnp.arange(text.shape[1] - 1) >= given[:, None]
        labels = jnp.where(counts, task.labels(text), next_token.IGNORED)
        return next_token.log_likelihood(hidden, model.head(variables), labels)
