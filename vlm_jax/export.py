"""Takes a trained model to other libraries.

python -m vlm_jax.export WORKDIR --to=hf DIR          # transformers: AutoModel, AutoProcessor
python -m vlm_jax.export WORKDIR --to=open_clip DIR   # open_clip: local-dir:DIR
python -m vlm_jax.export WORKDIR --to=safetensors DIR # our names, for vlm_jax.load and config.init_from
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from vlm_jax import config as configs
from vlm_jax import tree
from vlm_jax.checkpoint import folder as disk
from vlm_jax.checkpoint import latest_step, load_params
from vlm_jax.errors import UserError
from vlm_jax.interop import card, ours, writing
from vlm_jax.redact import hidden

TARGETS = ("hf", "open_clip", "safetensors")


def export(workdir: Path, to: str, output: Path, weights: str | None = None) -> list[str]:
    """Writes the folder; returns what it cannot express, in lines.

    Args:
      weights: "ema" or "params"; the moving average, where the run keeps one, unless said.

    Raises:
      UserError: the workdir is none, the other library has no such model, or `output` is there already.
    """
    if not ours.is_config(workdir / "config.json"):
        raise UserError(f"{workdir} is no workdir: it has no config.json of a run.")
    if to not in TARGETS:
        raise UserError(f"--to={to}: {', '.join(TARGETS)} are what there is.")
    run = ours.open_run(workdir)
    model = configs.build(run.model)
    weights = weights or _held(workdir)
    params, meta = load_params(workdir, weights)
    image = configs.build(run.image)
    if to == "safetensors":
        folder = _as_it_is(workdir, run, params)
    else:
        mean, std = (getattr(model, f"image_{name}", ours.HALVES) for name in ("mean", "std"))
        arguments = (model, params, image, run.text, mean, std)
        if to == "open_clip":
            folder = writing.to_open_clip(*arguments)
        else:
            talk = None if run.conversations is None else configs.build(run.conversations)
            folder = writing.to_hugging_face(*arguments, talk)
    name = weights.replace("ema", "moving average of the parameters").replace("params", "parameters")
    readme = card.write(
        to,
        name=output.name,
        origin=f"{name} of step {meta['step']} of the run {workdir.resolve().name}",
        numbers=card.last_numbers(workdir),
        notes=folder.notes,
        config=hidden(configs.to_json(run.config)),
        kind=type(model).__name__,
    )
    writing.save(dataclasses.replace(folder, files=folder.files | {"README.md": readme.encode()}), output)
    return list(folder.notes)


def _held(workdir: Path) -> str:
    step = latest_step(workdir)
    meta = {} if step is None else disk.read_meta(disk.root(workdir) / str(step))
    return "ema" if disk.of_item("ema", meta.get("fingerprints", {})) else "params"


def _as_it_is(workdir: Path, run: ours.Run, params: dict) -> writing.Folder:
    files = {"config.json": hidden(configs.to_json(run.config)).encode()}
    files |= {f"assets/{path.name}": path.read_bytes() for path in (workdir / "assets").glob("*") if path.is_file()}
    return writing.Folder(files, ours.WEIGHTS, tree.flatten(params))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vlm_jax.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", type=Path)
    parser.add_argument("output", type=Path, metavar="DIR", help="a folder that is not there yet")
    parser.add_argument("--to", required=True, choices=TARGETS)
    parser.add_argument("--weights", choices=("params", "ema"), help="default: ema, where the run keeps one")
    args = parser.parse_args(argv)
    try:
        notes = export(args.workdir, args.to, args.output, args.weights)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for note in notes:
        print(f"note: {note}")
    print(f"{args.output}: written for {card.LIBRARIES[args.to]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
