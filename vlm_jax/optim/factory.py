"""Optimizers by name over optax: clipping, weight decay, learning-rate multipliers and freezing by parameter name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax

from vlm_jax import tree
from vlm_jax.errors import UserError, closest
from vlm_jax.optim import rules
from vlm_jax.optim.schedules import Constant, Cosine, Rsqrt, Schedule
from vlm_jax.optim.vectorized import vectorized
from vlm_jax.units import Clock

Tree = Any
NAMES = ("adamw", "adafactor", "lion", "sgd")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer, its schedule, and rules by parameter name.

    An update is `-lr(step) * multiplier * (direction + weight_decay * parameter)`: weight decay is decoupled from the
    direction (Loshchilov and Hutter 2019) and scales with the learning rate, as in optax and PyTorch. big_vision's
    decay does not scale with the peak; its 1e-4 at learning rate 1e-3 is 0.1 here.

    Rules are regular expressions that match whole per-layer names (see `optim.rules`); of a list of rules the first
    that matches counts. Where they split a scanned stack, they act on its layers one by one.

    Attributes:
      name: adamw, adafactor, lion or sgd. adafactor is the variant of Zhai et al. 2022 (arXiv:2106.04560): factored
        second moment whose decay is min(b2, 1 - t^-0.8), for dimensions of 32 and more, no update clipping, no scaling
        by the parameter, an average of the updates with b1 as first moment.
      learning_rate: at the peak of the schedule.
      b1, b2: decays of the moments; b2=None is the optimizer's own (adamw and adafactor 0.999, lion 0.99).
      eps: of adamw. momentum: of sgd.
      weight_decay_mask: what decays. By default matrices and token embeddings, not biases, norms, scalars, positions,
        CLS tokens and the probes of poolings.
      clip_norm: gradients (of what is trained) are scaled down to this global norm; None does not clip.
      learning_rate_mults: (rule, multiplier) pairs.
      freeze: rules of parameters that do not change.
      lock: (tower, "all" or k) pairs, for example ("image", 2): locks a tower, or all of it but its last k blocks and
        what comes after them (norm, pool, head).
      layer_decay: see `rules.layer_decay`; multiplies `learning_rate_mults`.
      mu_dtype: of the first moment, for example "bfloat16"; None is the parameter's.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    schedule: Cosine | Rsqrt | Constant = Cosine()
    b1: float = 0.9
    b2: float | None = None
    eps: float = 1e-8
    momentum: float = 0.9
    weight_decay: float = 0.0
    weight_decay_mask: str = r"(.*/)?(kernel|token|embedding)"
    clip_norm: float | None = None
    learning_rate_mults: tuple[tuple[str, float], ...] = ()
    freeze: tuple[str, ...] = ()
    lock: tuple[tuple[str, str | int], ...] = ()
    layer_decay: float | None = None
    mu_dtype: str | None = None

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises UserError for values that no model could make right."""
        if self.name not in NAMES:
            raise UserError(f"unknown optimizer.name={self.name!r}; {closest(self.name, NAMES)}")
        if self.learning_rate <= 0:
            raise UserError(f"optimizer.learning_rate={self.learning_rate:g} must be above zero.")
        for field in ("b1", "b2", "momentum"):
            value = getattr(self, field)
            if value is not None and not 0 <= value < 1:
                raise UserError(f"optimizer.{field}={value:g} must be at least 0 and below 1.")
        if self.weight_decay < 0:
            raise UserError(f"optimizer.weight_decay={self.weight_decay:g} must not be negative.")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise UserError(f"optimizer.clip_norm={self.clip_norm:g} must be above zero; None does not clip.")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise UserError(f"optimizer.layer_decay={self.layer_decay:g} must be above 0 and at most 1.")
        if self.mu_dtype not in (None, "bfloat16", "float16", "float32"):
            raise UserError(f"optimizer.mu_dtype={self.mu_dtype!r}; give bfloat16, float16, float32 or None.")
        for rule, multiplier in self.learning_rate_mults:
            if multiplier <= 0:
                raise UserError(f"optimizer.learning_rate_mults: {multiplier:g} for {rule!r}; freeze stops parameters.")
        for tower, last in self.lock:
            if last != "all" and not isinstance(last, int):
                raise UserError(f"optimizer.lock: {tower}={last!r}; give a number of last blocks left free, or all.")

    def split(self, params: Tree, stacks: Mapping[str, int]) -> tuple[dict, dict]:
        """(trained, frozen) parts of all parameters, by leaves frozen as a whole; `merge` is the inverse.

        The frozen part needs no gradient and no optimizer state. Works on arrays, tracers and shapes.

        Raises:
          UserError: a rule of `freeze` or `lock` fits no parameter, or nothing is left to train.
        """
        names = _all_names(params, stacks)
        rules.check("freeze", self.freeze, names)
        rules.check_lock(dict(self.lock), names)
        trained, frozen = rules.part(params, rules.values(self._frozen(names), params, stacks))
        if not trained:
            raise UserError("optimizer.freeze and optimizer.lock leave nothing to train.")
        return trained, frozen

    def make(
        self, params: Tree, clock: Clock, stacks: Mapping[str, int]
    ) -> tuple[optax.GradientTransformation, Schedule]:
        """The transformation, whose `init` and `update` take the trained part of the parameters, and step -> rate.

        Layers that are frozen within a stack get updates of exactly zero.

        Args:
          params: all parameters, arrays or shapes (the trained part alone hides how deep a tower is where its last
            blocks are frozen, which `layer_decay` counts from).
          clock: what the units of durations are worth.
          stacks: scanned groups of layers, whose leaves in `params` are stacked, and their depth.

        Raises:
          UserError: a rule matches no parameter; a duration of the schedule does not fit.
        """
        names = _all_names(params, stacks)
        rules.check("learning_rate_mults", [rule for rule, _ in self.learning_rate_mults], names)
        if self.weight_decay:
            rules.check("weight_decay_mask", [self.weight_decay_mask], names)
        frozen = rules.values(self._frozen(names), params, stacks)
        multiplier = rules.values(self._multiplier(names), params, stacks)
        decay = rules.values(
            lambda name: self.weight_decay if re.fullmatch(self.weight_decay_mask, name) else 0.0, params, stacks
        )
        shape = self.schedule.make(clock)

        def learning_rate(step):
            return self.learning_rate * shape(step)

        parts = [
            _zero_where(frozen),
            optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity(),
            self._direction(stacks),
            _add_decay(decay) if self.weight_decay else optax.identity(),
            _scale({name: value * (1 - frozen[name]) for name, value in multiplier.items()}),
            optax.scale_by_learning_rate(learning_rate),
        ]
        return optax.chain(*parts), learning_rate

    def _direction(self, stacks: Mapping[str, int]) -> optax.GradientTransformation:
        b2 = self.b2 if self.b2 is not None else {"lion": 0.99}.get(self.name, 0.999)
        if self.name == "adamw":
            return optax.scale_by_adam(b1=self.b1, b2=b2, eps=self.eps, mu_dtype=self.mu_dtype)
        if self.name == "lion":
            return optax.scale_by_lion(b1=self.b1, b2=b2, mu_dtype=self.mu_dtype)
        if self.name == "sgd":
            return optax.trace(self.momentum, accumulator_dtype=self.mu_dtype) if self.momentum else optax.identity()
        second = optax.scale_by_factored_rms(
            min_dim_size_to_factor=32,
            decay_rate_fn=lambda step, rate: jnp.minimum(b2, 1.0 - (step + 1.0) ** -rate),
        )
        first = optax.ema(self.b1, debias=False, accumulator_dtype=self.mu_dtype) if self.b1 else optax.identity()
        return optax.chain(vectorized(second, stacks), first)

    def _frozen(self, names: list[str]) -> Callable[[str], bool]:
        locked = rules.locked(dict(self.lock), names)
        return lambda name: locked(name) or any(re.fullmatch(rule, name) for rule in self.freeze)

    def _multiplier(self, names: list[str]) -> Callable[[str], float]:
        layer = rules.layer_decay(self.layer_decay, names) if self.layer_decay is not None else lambda name: 1.0
        first = lambda name: next((m for rule, m in self.learning_rate_mults if re.fullmatch(rule, name)), 1.0)
        return lambda name: first(name) * layer(name)


def _all_names(params: Tree, stacks: Mapping[str, int]) -> list[str]:
    return [name for names in rules.layer_names(params, stacks).values() for name in names]


def _zero_where(frozen: rules.Values) -> optax.GradientTransformation:
    """Gradients of frozen layers are zero, and count in no norm and no moment even where they are not finite."""

    def zero(name, gradient):
        return jnp.where(rules.along(frozen[name], gradient) > 0, 0, gradient) if frozen[name].any() else gradient

    return optax.stateless(lambda updates, params: tree.map_with_name(zero, updates))


def _add_decay(decay: rules.Values) -> optax.GradientTransformation:
    def add(name, update, param):
        return update + rules.along(decay[name], param) * param if decay[name].any() else update

    return optax.stateless(lambda updates, params: tree.map_with_name(add, updates, params))


def _scale(multiplier: rules.Values) -> optax.GradientTransformation:
    def scale(name, update):
        return update if (multiplier[name] == 1).all() else update * rules.along(multiplier[name], update)

    return optax.stateless(lambda updates, params: tree.map_with_name(scale, updates))
