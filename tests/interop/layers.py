"""Where two models part: the largest difference after each layer, relative to the layer's largest value."""

import jax
import numpy as np

from ..parity import peers


def report(model, params, theirs, pixels, text):
    """A line for each layer of both towers of a `TwoTower` and its model of transformers."""
    torch = peers.torch()
    with torch.no_grad():
        image_out = theirs.vision_model(pixel_values=pixels["theirs"], output_hidden_states=True)
        text_out = theirs.text_model(input_ids=torch.tensor(text).long(), output_hidden_states=True)
    lines = []
    for name, tower, x, out in (
        ("image", model.image, pixels["ours"], image_out),
        ("text", model.text, text, text_out),
    ):
        taps = [tap for tap in tower.tap_names if tap == "embed" or tap.startswith("blocks/")]
        _, aux = jax.jit(lambda p, x, tower=tower, taps=taps: tower.apply(p, x, taps=taps))(params[name], x)
        for tap, hidden in zip(taps, out.hidden_states):
            hidden = hidden.numpy()
            difference = np.abs(np.asarray(aux["taps"][tap]) - hidden).max() / np.abs(hidden).max()
            lines.append(f"{name}/{tap}: {difference:.1e}")
    return "\n".join(lines)
