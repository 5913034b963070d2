"""CM3Leon in miniature on drawn shapes: a break between text and image, and half of the documents with masked spans.

Spans are cut out and moved behind the document's end (CM3: Aghajanyan et al. 2022, arXiv:2201.07520), so that the
decoder also learns to fill in a part of a caption that stands before its image, or a whole image, from what comes
after. The token between text and image is CM3Leon's (Yu et al. 2023, arXiv:2309.02591). All else is as in
`chameleon_tiny`, with the same two runs before it.
"""

from vlm_jax.configs._fused import SHORT, tiny

VARIANTS = SHORT


def get_config(variant: str = ""):
    return tiny(variant, markers="break", sentinels=2, infilled=0.5)
