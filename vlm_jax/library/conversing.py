"""Models that answer: language models, and LLaVA, Fuyu and EVE, which see images among the text."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vlm_jax import mesh as meshes
from vlm_jax import tree
from vlm_jax.data.chat_template import END, IMAGE, Message, Template, Turn
from vlm_jax.data.conversations import Conversations
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError
from vlm_jax.evaluate.cards import Card
from vlm_jax.generate import Sampling
from vlm_jax.interop.imported import RGB
from vlm_jax.library import asking
from vlm_jax.library.asking import Asked
from vlm_jax.library.batches import Batches, Images, power_of_two
from vlm_jax.library.found import Found
from vlm_jax.models.eve import Eve
from vlm_jax.models.multimodal import MultimodalDecoder
from vlm_jax.tasks.language_model import LanguageModeling

# Of models that were not trained on conversations: the prompt as it stands, and how it goes on.
CONTINUED = Template({"user": Turn(), "assistant": Turn("", END)})
SHORTEST = 16  # tokens of a row; longer ones are powers of two


def conversing(
    found: Found, text: Text | None, template: str | Template | None, path: str
) -> tuple[MultimodalDecoder, dict, dict[str, Any]]:
    """The network as it answers, its parameters, and the fields of `ConversationModel` beside those of all models.

    Raises:
      UserError: there is no tokenizer, or it does not fit the model or the chat template.
    """
    if text is None:
        raise UserError(f"{path} came without its tokenizer; give load(PATH, tokenizer=FILE).")
    network, params = found.network, found.params
    conversations = found.conversations or Conversations(template=CONTINUED, images=None)
    if template is not None:
        conversations = dataclasses.replace(conversations, template=template, system=None)
    if isinstance(network, Eve) and network.teacher is not None:  # it was needed to learn
        network = dataclasses.replace(network, teacher=None)
        params = {name: value for name, value in params.items() if name not in ("aligning", "teacher")}
        images = dataclasses.replace(conversations.images, view=None)
        conversations = dataclasses.replace(conversations, images=images)
    network.check_images(conversations.images)
    if text.vocab_size > network.vocab_size:
        raise UserError(f"{path}: the model knows {network.vocab_size} tokens, its tokenizer has {text.vocab_size}.")
    conversations.chat(text).check()
    return network, params, {"conversations": conversations, "sampling": found.sampling}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ConversationModel:
    """A model on its devices that answers prompts. Lists are taken in batches of a few fixed shapes.

    Attributes (besides those of `Model`):
      conversations: the chat template, and how images stand among tokens.
      sampling: how answers are written unless `generate` is told otherwise; the run's.
    """

    source: str
    family: str
    step: int | None
    network: MultimodalDecoder
    variables: dict[str, Any]
    image: ImageTransform
    image_mean: RGB
    image_std: RGB
    text: Text
    mesh: Mesh
    batch_size: int
    conversations: Conversations
    sampling: Sampling

    def __repr__(self) -> str:
        size = sum(leaf.size for leaf in jax.tree.leaves(self.variables))
        takes = "texts" if self.conversations.images is None else "texts with images"
        return f"<{self.family} model of {self.source}: {size:,} parameters, answers {takes}>"

    @property
    def params(self) -> dict[str, Any]:
        """Nested dicts of f32 numpy arrays under per-layer names, as on disk; without an alignment's teacher."""
        whole = jax.tree.map(lambda leaf: meshes.gather(leaf, self.mesh), self.variables["params"])
        return tree.unstack(whole, self.network.stacks)

    @functools.cached_property
    def predict(self) -> dict[str, Callable]:
        """Jitted functions by name, as evaluators take them: see `tasks.language_model`."""
        return self._task(self.sampling).predict(self.variables)

    def protocol(self, name: str | None = None) -> tuple[Card | None, list[str]]:
        """None: there are no protocol cards of models that answer. Raises UserError where one is asked for."""
        if name is not None:
            raise UserError(f"protocol card {name!r}: {self.source} embeds nothing, which is what cards are about.")
        return None, []

    def generate(
        self, image: Images | None = None, prompt: Any = None, *, seed: int = 0, **options: Any
    ) -> str | list[str]:
        """The answer to a prompt, or a list of answers where images or prompts are lists.

        Args:
          image: a picture or several, as `Model.encode_image` takes them; None for text alone. For a prompt with
            several places it is a list of as many, for a list of prompts a list with the images of each.
          prompt: a text, in which `<image>` is the place of an image, or messages: `{"role": ..., "content": ...}`, as
            in training (see `data.conversations`). Images of a text without places stand before it.
          seed: of what is drawn at a temperature.
          options: `max_tokens`, `temperature`, `top_k`, `top_p`, `beams`, `length_penalty`, see `generate.Sampling`;
            those of the run unless given.

        Raises:
          UserError: options that do not fit, a prompt that is longer than the context, places without images, images
            without places, or unreadable ones.
        """
        sampling = asking.sampling(self.sampling, options)
        room = self.network.length - sampling.max_tokens
        if room < 1:
            raise UserError(
                f"max_tokens={sampling.max_tokens} leaves no room for a prompt: the model's length is "
                f"{self.network.length}."
            )
        questions, several = asking.asked(image, prompt)

        def one(batch: dict, start: int) -> jax.Array:
            key = (jax.random.fold_in(jax.random.key(seed), start),) if sampling.temperature else ()
            return self._task(sampling, batch).predict(self.variables)["answer"](batch, *key)

        tokens = self._run(one, self.conversations.prompts, questions, room)
        stops = (*sampling.stop, self.conversations.chat(self.text).end_id)
        out = [] if tokens is None else asking.decoded(self.text, tokens, stops)
        return out if several else out[0]

    def score(self, image: Images | None = None, prompt: Any = None, answer: Any = None) -> float | list[float]:
        """The log-likelihood of `answer`, and of the token that ends it, after a prompt; a list where one is given.

        The answers of one prompt may be a list: the likeliest of several choices is the one with the largest.

        Raises:
          UserError: as `generate`, or there is no answer.
        """
        if answer is None:
            raise UserError("score: which answer? score(image, prompt, answer) takes a text or a list.")
        questions, several = asking.asked(image, prompt, answer)
        one = lambda batch, start: self._task(self.sampling, batch).predict(self.variables)["score"](batch)
        found = self._run(one, self.conversations.scored, questions, self.network.length)
        scores = [] if found is None else found.tolist()
        return scores if several else scores[0]

    def _run(self, function: Callable, make: Callable, questions: Sequence[Asked], room: int) -> np.ndarray | None:
        """`function` of the rows that `make` (of `Conversations`) makes of questions; None of none."""
        numbered = list(enumerate(questions))
        prepare = functools.partial(self._rows, make.__name__, room)
        return Batches(self.mesh, self.batch_size).run(function, numbered, prepare) if questions else None

    def _rows(self, make: str, room: int, questions: Sequence[tuple[int, Asked]]) -> dict[str, np.ndarray]:
        """Rows as long as the longest question, or a little longer, so that there are few lengths."""
        conversations = self._with_room(max(len(question.images) for _, question in questions))[0]
        records = [_record(number, question) for number, question in questions]
        text = dataclasses.replace(self.text, length=room)
        try:
            arrays = getattr(conversations, make)(records, image=self.image, text=text)
        except UserError as error:
            raise UserError(str(error).replace("record ", "prompt ", 1)) from None
        counts = (arrays["text_segment_ids"] > 0).sum(axis=1)
        if not counts.all():
            raise UserError(f"prompt {questions[int(counts.argmin())][0]} is empty: write something, or give an image.")
        length = min(room, max(SHORTEST, power_of_two(int(counts.max()))))
        along = ("text", "text_segment_ids", "target_mask", "text_image_ids")
        return {name: array[:, :length] if name in along else array for name, array in arrays.items()}

    def _with_room(self, images: int) -> tuple[Conversations, MultimodalDecoder]:
        """For rows of so many images: what they were in training, or two, four, ... times that."""
        own = self.conversations.images
        if own is None or images <= own.count:
            return self.conversations, self.network
        factor = power_of_two(-(-images // own.count))
        room = {field.name for field in dataclasses.fields(own)} & {"count", "patches", "tiles"}
        more = {name: getattr(own, name) * factor for name in room}
        conversations = dataclasses.replace(self.conversations, images=dataclasses.replace(own, **more))
        sizes = {"images" if name == "count" else name: value for name, value in more.items()}
        return conversations, dataclasses.replace(self.network, **sizes)

    def _task(self, sampling: Sampling, batch: Mapping[str, Any] | None = None) -> LanguageModeling:
        images = 0
        for name in ("image", "image_grids", "tile_grids"):  # the last that there is has one for each image
            if batch is not None and name in batch:
                images = batch[name].shape[1]
        return LanguageModeling(
            self._with_room(images)[1],
            length=self.network.length,
            sampling=sampling,
            end_id=self.conversations.chat(self.text).end_id,
            pad_id=self.text.pad_id,
        )


def _record(number: int, question: Asked) -> dict[str, Any]:
    """What `Conversations` reads."""
    prompt = question.prompt
    if prompt is None or isinstance(prompt, str):
        content: Any = prompt or ""
        if IMAGE not in content:
            words = [{"type": "text", "text": content}] if content else []
            content = [*({"type": "image"} for _ in question.images), *words]
        messages: list[Message] = [{"role": "user", "content": content}]
    else:
        messages = list(prompt)
    if question.answer is not None:
        if messages and messages[-1].get("role") == "assistant":
            messages = messages[:-1]
        messages = [*messages, {"role": "assistant", "content": question.answer}]
    return {"key": number, "messages": messages, "images": list(question.images)}
