"""Text as tokenizers want it, in the ways of those who published weights."""

from __future__ import annotations

import html
import re
import string
import unicodedata

from vlm_jax.errors import UserError

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# `\s` of Python counts four separators of files and records that Unicode does not call white space.
_SPACES = re.compile(r"[^\S\x1c-\x1f]+")


def siglip(text: str) -> str:
    """big_vision's: underscores are spaces, no ASCII punctuation."""
    return lower(text.replace("_", " ").translate(_NO_PUNCTUATION))


def siglip_transformers(text: str) -> str:
    """As `siglip`; but an underscore is punctuation, and goes."""
    return lower(text.lower().translate(_NO_PUNCTUATION))


def siglip_open_clip(text: str) -> str:
    """As `siglip`, after broken encodings and HTML entities are mended."""
    return siglip(_mended(text))


def siglip2(text: str) -> str:
    """Lower case, each character by itself; spaces stay."""
    return "".join(character.lower() for character in text)


def clip(text: str) -> str:
    """OpenAI's and open_clip's: broken encodings and HTML entities are mended, white space is one space."""
    return " ".join(_mended(text).split()).lower()


def clip_transformers(text: str) -> str:
    """Composed characters, white space as one space, lower case; nothing is mended."""
    return siglip2(_SPACES.sub(" ", unicodedata.normalize("NFC", text))).strip()


def lower(text: str) -> str:
    """Lower case, white space as one space."""
    return re.sub(r"\s+", " ", text.lower()).strip()


def none(text: str) -> str:
    """As it is."""
    return text


FUNCTIONS = {
    function.__name__: function
    for function in (siglip, siglip_transformers, siglip_open_clip, siglip2, clip, clip_transformers, lower, none)
}


def _mended(text: str) -> str:
    try:
        import ftfy
    except ImportError:
        raise UserError(
            "canonicalise='clip' or 'siglip_open_clip' mends text with ftfy, which is not installed: "
            "pip install 'vlm_jax[text]'; canonicalise='clip_transformers' does without."
        ) from None
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()
