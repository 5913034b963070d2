"""Small random models of other libraries, on disk as those libraries write them."""

import numpy as np

from vlm_jax import interop, tree

from ..parity import peers

WIDTH, DEPTH, HEADS, MLP = 32, 2, 4, 48
PATCH, IMAGE, VOCAB, LENGTH, BATCH = 8, 32, 50, 12, 3
EOS = VOCAB - 1
SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": MLP,
}
VISION = {**SIZES, "image_size": IMAGE, "patch_size": PATCH}
TEXT = {**SIZES, "vocab_size": VOCAB, "max_position_embeddings": LENGTH}
NO_SPECIALS = {"bos_token_id": None, "eos_token_id": EOS, "pad_token_id": 0}


def siglip(activation="gelu_pytorch_tanh", **vision):
    t = peers.transformers()
    act = {"hidden_act": activation}
    text = TEXT | act | NO_SPECIALS | {"projection_size": WIDTH}
    return t.SiglipModel(t.SiglipConfig(vision_config=VISION | act | vision, text_config=text))


def siglip2():
    t = peers.transformers()
    vision = SIZES | {"patch_size": PATCH, "num_patches": (IMAGE // PATCH) ** 2}
    return t.Siglip2Model(t.Siglip2Config(vision_config=vision, text_config=TEXT | NO_SPECIALS))


def clip(activation="quick_gelu", eos=EOS):
    t = peers.transformers()
    act = {"hidden_act": activation}
    text = TEXT | act | {"bos_token_id": 1, "eos_token_id": eos, "pad_token_id": EOS}
    return t.CLIPModel(t.CLIPConfig(vision_config=VISION | act, text_config=text, projection_dim=24))


def vit(labels=None, **options):
    t = peers.transformers()
    if labels is None:
        return t.ViTModel(t.ViTConfig(**VISION, **options))
    return t.ViTForImageClassification(t.ViTConfig(**VISION, num_labels=labels, **options))


def dinov2(swiglu=False, registers=0):
    t = peers.transformers()
    sizes = {k: v for k, v in VISION.items() if k != "intermediate_size"} | {"use_swiglu_ffn": swiglu}
    if registers:
        return t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers))
    return t.Dinov2Model(t.Dinov2Config(**sizes))


def randomise(model):
    """Moves every parameter, so that biases, norms and probes are not at trivial values."""
    torch = peers.torch()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def save(model, folder):
    model.save_pretrained(folder)
    return folder


def our_gradients(model, folder):
    """The gradients of a torch model under our names: saved as if they were weights, and imported."""
    torch = peers.torch()
    with torch.no_grad():
        for parameter in model.parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.copy_(gradient)
    return tree.flatten(interop.source(save(model, folder)).params())


def inputs():
    """Images as the towers see them, and texts that are padded with their end token: only the first is the end."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(BATCH, IMAGE, IMAGE, 3)).astype(np.float32)
    text = rng.integers(3, EOS, (BATCH, LENGTH)).astype(np.int32)
    for row, end in enumerate((LENGTH - 1, 4, 7)):
        text[row, end:] = EOS
    return image, text


def channels_first(image):
    return peers.torch().tensor(image.transpose(0, 3, 1, 2))


def assert_close(ours, theirs, name, tolerance=1e-5, size=0.0):
    """|ours - theirs| <= tolerance (|theirs| + the largest of |theirs| and `size`)."""
    theirs = np.asarray(theirs)
    atol = tolerance * max(np.abs(theirs).max(), size)
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=atol, err_msg=name)


def assert_gradients(ours, theirs, terms=0.0):
    """Each is held against the largest of its module: those of a query are sums in which such terms cancel.

    A scalar is held against `terms`, the sum of the sizes of what its gradient adds up.
    """
    ours = tree.flatten(ours)
    assert ours.keys() == theirs.keys()
    module = lambda name: name.rsplit("/", 2)[0]
    largest = {}
    for name, gradient in theirs.items():
        largest[module(name)] = max(largest.get(module(name), 0.0), np.abs(gradient).max())
    for name, gradient in ours.items():
        size = largest[module(name)] if np.ndim(gradient) else terms
        assert_close(gradient, theirs[name], f"gradient of {name}", size=size)
