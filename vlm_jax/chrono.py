"""Where the time of a run goes: steps, waiting for data, and everything that is not training."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Chrono:
    """Speed between two log times, pauses (evaluation, saving) left out.

    Args:
      batch_size: examples a step. total: steps of the run.
      flops: model FLOPs of one step over all devices (3 x forward; recomputation earns nothing).
      devices: how many share them. peak_tflops: of one device, None where unknown.
    """

    def __init__(
        self, *, batch_size: int, total: int, step: int, flops: float, devices: int, peak_tflops: float | None
    ):
        self.batch_size, self.total, self.flops, self.devices, self.peak = (
            batch_size,
            total,
            flops,
            devices,
            peak_tflops,
        )
        self.training_seconds = 0.0
        self._mark(step, time.perf_counter())

    def _mark(self, step: int, now: float) -> None:
        self._step, self._then, self._paused = step, now, 0.0

    def restart(self, step: int) -> None:
        """Begins a new window: compiling the first step is not speed."""
        self._mark(step, time.perf_counter())

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside does not count as training."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - begin

    def read(self, step: int, waited: float = 0.0) -> dict[str, float]:
        """Metrics of the window that ends at `step`, which must be done on the device; starts the next one.

        `waited` are the seconds of it that the loop waited for data.

        `examples_per_s`, `step_ms`, `data_wait_percent`, `eta_s`, and of one device `tflops`, `mfu_percent`.
        """
        now = time.perf_counter()
        steps, seconds = step - self._step, now - self._then - self._paused
        self._mark(step, now)
        if steps <= 0 or seconds <= 0:
            return {}
        self.training_seconds += seconds
        tflops = self.flops * steps / seconds / self.devices / 1e12
        metrics = {
            "examples_per_s": steps * self.batch_size / seconds,
            "step_ms": 1e3 * seconds / steps,
            "data_wait_percent": 100 * waited / seconds,
            "eta_s": seconds / steps * (self.total - step),
            "tflops": tflops,
        }
        if self.peak:
            metrics["mfu_percent"] = 100 * tflops / self.peak
        return metrics
