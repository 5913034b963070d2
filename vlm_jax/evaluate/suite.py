"""What `python -m vlm_jax.evaluate run` does with weights that bring no evaluators: every kind, on drawn shapes.

A recipe of evaluators alone; write your own the same way, with your files as sources, and give it as `--config=FILE`.
"""

from vlm_jax.config import bind, late


def get_config(variant: str = ""):
    def shapes(kind: str = "data.sources.shapes.Shapes", **options):
        return bind(kind, **dict(image_size=64, split="test", size=500, pairs="all") | options)

    single = dict(scenes="single")
    image, prompts = dict(image=late("image")), dict(templates=("a picture of a {}",))
    both = dict(image=late("image"), text=late("text"))
    votes = dict(train=shapes(**single, split="val", size=2000), source=shapes(**single))
    several = shapes(scenes="several")

    def zero_shot(**source):
        labels = shapes("evaluate.readers.shapes.ShapesLabels", **single, **source, group="size")
        return bind("evaluate.zero_shot.ZeroShot", source=labels, **both, **prompts)

    def choices(**subsets):
        source = bind("evaluate.readers.shapes.ShapesChoices", shapes=several, **subsets)
        return bind("evaluate.choice.Choose", source=source, **both)

    return bind(
        "evaluate.command.Evaluators",
        evals=dict(
            zero_shot=zero_shot(),
            shift=bind("evaluate.shift.Shift", parts={pairs: zero_shot(pairs=pairs) for pairs in ("seen", "held_out")}),
            multi_label=bind(
                "evaluate.multi_label.MultiLabel",
                source=shapes("evaluate.readers.shapes.ShapesLabels"),
                **both,
                **prompts,
            ),
            retrieval=bind("evaluate.retrieval.Retrieval", source=shapes(), **both, captions=5),
            choices=choices(),
            order=choices(subsets=("order",)),
            winoground=bind(
                "evaluate.winoground.Winoground",
                source=bind("evaluate.readers.shapes.ShapesWinoground", shapes=several),
                **both,
            ),
            knn=bind("evaluate.knn.KNN", **votes, **image),
            few_shot=bind("evaluate.few_shot.FewShot", **votes, **image, shots=(1, 5, 10)),
            linear_probe=bind("evaluate.linear_probe.LinearProbe", **votes, **image),
        ),
    )
