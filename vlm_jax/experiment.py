"""A run as one component: what a recipe binds at its root, and what is checked before any device is touched."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from vlm_jax import config as configs
from vlm_jax.data.conversations import Conversations
from vlm_jax.data.fusion import Fusion
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.packing import Packing
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError
from vlm_jax.health.guards import Guards
from vlm_jax.health.watchdog import Stalls
from vlm_jax.mesh import Layout
from vlm_jax.optim import Optimizer
from vlm_jax.units import Clock, timed


@dataclasses.dataclass(frozen=True)
class Profile:
    """A window of steps whose trace is written to WORKDIR/profile, for xprof or TensorBoard."""

    start: int = 10
    steps: int = 5


@dataclasses.dataclass(frozen=True)
@timed("total", "log", "checkpoint", "milestone", "evaluate")
class Experiment:
    """The root of a config.

    Args:
      task: the objective and its model.
      data: what it is trained on.
      image, text: preprocessing, shared by training and evaluation; they reach `data` and `evals` as `late` values.
        A task without text needs none.
      packing: several images a row, shared by `data` and `task` as a `late` value. `batch_size` then counts rows, and
        durations count the examples that were packed into them.
      conversations: how conversations are written into rows, shared in the same way; evaluators may take it too. A
        tokenizer that is trained then knows the tokens of its template, and `late("end_id")` is what ends an answer.
      fusion: how texts and images become tokens of one vocabulary, shared in the same way; it may have late values of
        the tokenizer, and `late("fused_size")` is the size of its vocabulary.
      optimizer: and its schedule.
      evals: evaluators by the name their metrics get, `eval/NAME/METRIC`.
      tokenizer: `bytes`, the path of a sentencepiece model, or `train:N` (N pieces at most, on the training captions).
      total, log, checkpoint, milestone, evaluate: durations, each in `_steps`, `_examples`, `_epochs` or `_percent`.
      batch_size: pairs of the global batch. microbatches: parts it is worked through in.
      deterministic: the same bits each time, also on GPUs; the first step is made twice, which proves it.
      ema: decay of the moving average of the parameters; None keeps none.
      mesh: axes and rules of partition.
      grad_dtype: what gradients of matrices are summed in over devices; bfloat16 halves their messages.
      guards: against updates that would do harm. stalls: when a process in which nothing moves is ended.
      keep_checkpoints: how many steps stay on disk, the newest; those of `milestone_steps` stay for ever besides.
      resume: a workdir to continue from where this one has no checkpoint; everything is taken over.
      init_from: a workdir or checkpoint whose parameters are the start; or a model of another library: a folder of
        Hugging Face or open_clip, a big_vision `.npz`, `hf:ORG/NAME` (see `vlm_jax.interop`). Or several of these by
        the part of the model that each is for, such as {"image": "PATH#image", "decoder": "hf:ORG/NAME"}.
      init_from_skip: regular expressions of parameters that `init_from` leaves as they are initialised.
      overfit_batches: train on the first N batches again and again, to see the loss fall to zero.
      profile: writes a trace window.
      compilation_cache: folder of compiled programs, kept between runs; None keeps none.
      compiler_options: flags of XLA for the train step, besides those that overlap messages with work.
      peak_tflops: of one device, for MFU; None takes the table of known devices.
      wandb: a Weights & Biases project to write to as well.
      stages: what each stage changes, by its name; see `vlm_jax.stages`. A run is of one of them.
    """

    task: Any
    data: Pipeline
    image: ImageTransform
    optimizer: Optimizer
    batch_size: int
    text: Text | None = None
    packing: Packing | None = None
    conversations: Conversations | None = None
    fusion: Fusion | None = None
    tokenizer: str | None = "bytes"
    evals: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0
    deterministic: bool = False
    microbatches: int = 1
    ema: float | None = None
    mesh: Layout = Layout()
    grad_dtype: Literal["float32", "bfloat16"] = "float32"
    guards: Guards = Guards()
    stalls: Stalls = Stalls()
    keep_checkpoints: int = 3
    resume: str | None = None
    init_from: str | Mapping[str, str] | None = None
    init_from_skip: tuple[str, ...] = ()
    overfit_batches: int | None = None
    profile: Profile | None = None
    compilation_cache: str | None = "~/.cache/vlm_jax/xla"
    compiler_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    peak_tflops: float | None = None
    wandb: str | None = None
    stages: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        if self.stages:
            raise UserError(f"a recipe in stages is several runs: take one of {', '.join(self.stages)} (--stage=NAME).")
        for name in ("batch_size", "microbatches", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise UserError(f"config.{name}={getattr(self, name)} must be at least 1.")
        if self.batch_size % self.microbatches:
            raise UserError(f"config.microbatches={self.microbatches} does not divide batch_size={self.batch_size}.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UserError(
                f"config.ema={self.ema} is a decay between 0 and 1, for example 0.9999; None keeps no average."
            )
        if self.overfit_batches is not None and self.overfit_batches < 1:
            raise UserError(f"config.overfit_batches={self.overfit_batches} must be at least 1, or None.")
        packing = self.data.packing
        if packing != getattr(self.task, "packing", None):
            raise UserError(
                "config.data.packing and config.task.packing differ; set both to late('packing'), and config.packing."
            )
        if self.batch_size % (rows := self.data.window[1]):
            where = next(n for n in ("packing", "conversations", "fusion") if getattr(self.data, n) is not None)
            raise UserError(f"config.batch_size={self.batch_size} is not a multiple of config.{where}.rows={rows}.")
        _ = self.clock  # two units of the total, or none, is an error now
        for name in ("log", "checkpoint", "milestone", "evaluate"):
            self.clock.steps(self, name)
        self.optimizer.schedule.make(self.clock)
        if not 0 <= self.seed < 2**63:
            raise UserError(f"config.seed={self.seed} must be at least 0 and below 2^63.")
        for name, evaluator in self.evals.items():
            if isinstance(evaluator, Mapping):
                raise UserError(
                    f"config.evals.{name} is no evaluator, but {', '.join(evaluator) or 'nothing'} of one; bind one "
                    "there (a stage that changes an evaluator needs the recipe to have it)."
                )
            self.clock.steps(evaluator, "every")
            if evaluator.weights == "ema" and self.ema is None:
                raise UserError(f"config.evals.{name}.weights=ema needs config.ema, for example 0.9999.")
        if hasattr(self.task, "check_run"):
            self.task.check_run(self)
        spec = self.task.batch_spec(1)
        if "image" in spec and spec["image"].shape[-2] != self.image.size:
            size = spec["image"].shape[-2]
            raise UserError(
                f"config.image.size={self.image.size}, the model takes images of {size}; set both to one value."
            )
        if "text" not in spec:
            return
        if self.text is None:
            raise UserError("config.text: the task reads text; bind data.text.Text there.")
        length = spec["text"].shape[1] if self.data.packing is None else self.task.model.text.length
        if length != self.text.length:
            raise UserError(
                f"config.text.length={self.text.length}, the model takes {length} tokens; set both to one value."
            )
        table = getattr(getattr(getattr(self.task, "model", None), "text", None), "vocab_size", self.text.vocab_size)
        if table < self.text.vocab_size:
            raise UserError(
                f"the model embeds {table} tokens, the tokenizer {self.tokenizer} has {self.text.vocab_size}."
            )

    @property
    def examples(self) -> int:
        """Examples of a step: of a packed one, all that its windows hold."""
        return self.data.first_example(self.batch_size)

    @property
    def clock(self) -> Clock:
        """What `_examples`, `_epochs` and `_percent` are worth in steps."""
        epoch = self.overfit_batches * self.examples if self.overfit_batches else len(self.data.source)
        total = Clock(self.examples, epoch).steps(self, "total")
        if total is None:
            raise UserError("config: how long? Give total_steps, total_examples or total_epochs.")
        return Clock(self.examples, epoch, total)


def open_experiment(config: configs.ConfigDict, assets: Path) -> Experiment:
    """Builds the experiment that a config describes; a tokenizer is trained or copied into `assets` on the way.

    Raises:
      UserError: whatever can be wrong in it: files, sizes, names. No device is touched.
    """
    configs.check(config)
    spec = config.get("tokenizer", "bytes")
    if spec is None:
        raise UserError(
            "this recipe needs a tokenizer: --config.tokenizer=PATH. To train one on your captions, one a line: "
            "python -m vlm_jax.data.tokenizers train --output=tokenizer.model --vocab_size=32000 captions.txt"
        )
    if not assets.is_dir():  # everything is checked before anything is written
        with tempfile.TemporaryDirectory() as trial:
            _build(config, spec, Path(trial))
            part = assets.with_name(f".{assets.name}.part")
            shutil.rmtree(part, ignore_errors=True)  # what a killed run has left
            shutil.copytree(trial, part)
            part.rename(assets)
    return _build(config, spec, assets)


def fused(config: Mapping, late: Mapping[str, Any]) -> dict[str, Any]:
    """The late values of a config's `fusion`, given those of its text. Raises UserError where one is not known."""
    if config.get("fusion") is None:
        return {"fusion": None}
    fusion = configs.build(config.fusion, **late)
    return {"fusion": fusion, "fused_size": fusion.vocabulary.size}


def _build(config: configs.ConfigDict, tokenizer: str, assets: Path) -> Experiment:
    image = configs.build(config.image)
    source = configs.build(config.data.source, image=image)  # parts of a mixture may have the transform of all
    late = {"image": image, "class_names": tuple(source.class_names)}
    for name in ("packing", "conversations"):
        late[name] = None if config.get(name) is None else configs.build(config[name])
    if config.get("text") is not None:
        written = late["conversations"] and late["conversations"].written
        control = written.tokens if written else ()
        text = configs.build(config.text, tokenizer=tokenizer).resolve(source.captions, assets, control)
        late["end_id"] = late["conversations"].chat(text).end_id if written else text.eos_id
        late |= {"text": text, "tokenizer": text.tokenizer, "vocab_size": text.vocab_size}
        late |= {"pad_id": text.pad_id, "eos_id": text.eos_id, "bos_id": text.bos_id}
    late |= fused(config, late)
    return configs.build(config, **late)
