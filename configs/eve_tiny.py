"""EVE in miniature on drawn shapes (Diao et al. 2024, arXiv 2406.11832): no encoder, aligned with `siglip_tiny`'s.

Three stages, as the paper's: the decoder learns to answer from scenes that are told (in place of a language model that
is there already); then it is frozen while the patch layers learn from pictures and from the teacher; then all is tuned,
and goes on to learn from the teacher. With pictures a row has two questions and not eight: what the teacher shows takes
many pictures. What it reaches, with the teacher and without, is in docs/results.md.
The teacher is a run of `siglip_tiny`: `--config.stages.a_language.init_from.teacher='WORKDIR#image'` says where it is.
EVEv2 (2025, arXiv 2502.06788) has two convolutions, no teacher, and weights of their own for images in each block: the
second stage trains these, from copies of the language's, and leaves the language as it is.
"""

from vlm_jax.configs._answers import decoder, questions
from vlm_jax.configs._decoders import task
from vlm_jax.configs._shared import tiny_tower

from vlm_jax.config import bind

VARIANTS = {
    "short": "20 steps a stage, to see that everything works; nothing is aligned",
    "plain": "without the teacher, to compare with",
    "v2": "EVEv2: convolutions, and image weights in each block; no teacher",
}
SIDE, PATCH, MERGE = 8, 4, 2
ROWS = SIDE // MERGE
IMAGE = 1 + ROWS * (ROWS + 1)  # tokens
LENGTH = 80 + IMAGE  # eight questions about a picture, or about a scene that is told


def get_config(variant: str = ""):
    taught, divided = variant == "", variant == "v2"
    patches = dict(patch_size=PATCH, merge=MERGE, patches=SIDE**2)
    images = bind(
        "data.conversation_images.NativeImages",
        **patches,
        budget=SIDE**2,
        longest=SIDE,
        cls=True,
        view=32 if taught else None,
    )
    config = questions(images, short=variant == "short", length=LENGTH, turns=8)
    teacher = bind(
        "models.eve.Teacher",
        image=tiny_tower(),
        layer=None,
        interval=1,
        num_heads=4,
    )
    model = bind(
        "models.eve.Eve",
        decoder=decoder(width=128, depth=4, mlp_dim=344, length=LENGTH + 8, modalities=1 + divided),
        **patches,
        embedding="convolutions" if divided else "attention",
        width=96,
        num_heads=4,
        teacher=teacher if taught else None,
    )
    config.task = task(model, length=LENGTH, answer=4)
    told = dict(described=True)
    frozen = ("teacher/.*",) if taught else ()
    language = r"decoder/(?!blocks/\d+/image/).*" if divided else "decoder/.*"
    examples = (20 * 64,) * 3 if variant == "short" else (6_400, 12_800, 64_000)
    few = 24 + IMAGE
    pictures = dict(text=dict(length=few), task=dict(length=few), data=dict(source=dict(turns=2, per_scene=4)))
    config.optimizer.learning_rate = 1e-3
    config.stages = dict(  # in the order of their names
        a_language=dict(
            total_examples=examples[0],
            init_from=dict(teacher="workdirs/siglip_tiny#image") if taught else None,
            task=dict(model=dict(decoder=dict(modalities=1))),
            optimizer=dict(freeze=frozen),
            data=dict(source=told),
            evals=dict(questions=dict(source=told)),
        ),
        b_alignment=dict(total_examples=examples[1], optimizer=dict(freeze=(*frozen, language)), **pictures),
        c_tuning=dict(total_examples=examples[2], optimizer=dict(freeze=frozen, learning_rate=2e-3), **pictures),
    )
    return config
