"""Text to token ids and back.

`tokenizer` is the class that everything else uses. Below it, in this order: `styles` (what a family puts around a text), `clean`
(what decoding removes), `words` and `known` (words that were tokenised before), `build` (a pipeline of the tokenizers library), `keys`
(what becomes of every key of a tokenizer's files), `described` (what stands beside a vocabulary), `files` (reading and writing what
transformers, open_clip and sentencepiece write), `train` (new vocabularies).
May import `shared.errors`, `shared.keys` and `shared.unicode`.
"""

from .files import NoTokenizer
from .styles import STYLES, Style
from .tokenizer import KINDS, Tokenizer

__all__ = ["KINDS", "STYLES", "NoTokenizer", "Style", "Tokenizer"]
