"""The model card of an export: where it comes from, its last evaluation, what it cannot say, and its config."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

LIBRARIES = {"hf": "transformers", "open_clip": "open_clip", "safetensors": "vlm_jax"}
USES = {
    "hf": 'from transformers import AutoModel, AutoProcessor\n\nmodel = AutoModel.from_pretrained("FOLDER")\n'
    'processor = AutoProcessor.from_pretrained("FOLDER")',
    "open_clip": 'import open_clip\n\nmodel, preprocess = open_clip.create_model_from_pretrained("local-dir:FOLDER")\n'
    'tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")',
    "safetensors": 'import vlm_jax\n\nmodel = vlm_jax.load("FOLDER")',
}
# Of transformers, by our class.
DECODERS = {
    "TextDecoder": ("AutoModelForCausalLM", "AutoTokenizer"),
    "Llava": ("AutoModelForImageTextToText", "AutoImageProcessor", "AutoTokenizer"),
    "Fuyu": ("AutoModelForCausalLM", "AutoTokenizer"),
}


def last_numbers(workdir: Path) -> dict[str, tuple[int, float]]:
    """(step, value) of every metric of evaluation, as it was written last."""
    numbers: dict[str, tuple[int, float]] = {}
    path = workdir / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:  # the end of a run that was killed
            continue
        for name, value in record.items():
            if name.startswith("eval/") and isinstance(value, (int, float)):
                numbers[name.removeprefix("eval/")] = (record["step"], value)
    return numbers


def write(
    to: str,
    name: str,
    origin: str,
    numbers: dict[str, tuple[int, float]],
    notes: Sequence[str],
    config: str,
    kind: str = "",
) -> str:
    """README.md. `origin` says which weights these are; `config` is JSON; `kind` is the class of the model."""
    uses = USES[to]
    if to == "hf" and kind in DECODERS:
        loads = "\n".join(f'{cls}.from_pretrained("FOLDER")' for cls in DECODERS[kind])
        uses = f"from transformers import {', '.join(DECODERS[kind])}\n\n{loads}"
    lines = ["---", f"library_name: {LIBRARIES[to]}", "tags: [vlm_jax]", "---", "", f"# {name}", ""]
    lines += [f"Trained with vlm_jax; {origin}.", "", "```python", uses, "```", ""]
    if numbers:
        lines += ["## Evaluation", "", "| | step | value |", "|---|---|---|"]
        lines += [f"| {metric} | {step} | {value:.4f} |" for metric, (step, value) in sorted(numbers.items())] + [""]
    if notes:
        lines += ["## What these files cannot express", "", *(f"- {note}" for note in notes), ""]
    lines += ["## Config of the run", "", "```json", config, "```", ""]
    return "\n".join(lines)
