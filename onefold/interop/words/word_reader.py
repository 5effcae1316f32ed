"""Word vectors opened as a model of text: what fine-tuning on labels begins with.

Their tokenizer is the words that they are of: lower-cased runs of letters and digits, as data/text/words.py finds them;
each word without a vector is one token, whose vector is the mean of all. A text ends with a token of zeros.
"""

import numpy as np
import torch
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.data.text.words import WORD
from onefold.interop.loaded import Loaded
from onefold.models.text_head import TextHeadConfig
from onefold.models.words.word_reader import WordReaderConfig
from onefold.models.words.word_vectors import WordVectors

UNKNOWN, END = "<unk>", "<|endoftext|>"  # the first ids


def as_reader(vectors: WordVectors, device: "str | torch.device" = "cpu") -> Loaded:
    """A model without a classifier, whose tokens are the words."""
    words = [word for word in vectors.words if word not in (UNKNOWN, END)]
    matrix = vectors.matrix[[vectors.place(word) for word in words]]
    task = TextHeadConfig(lstm=vectors.width, pooling="max", dropout=0.5)
    config = WordReaderConfig(vocab=len(words) + 2, width=vectors.width, classifier=task)
    model = config.build()
    first = np.stack((matrix.mean(0), np.zeros(vectors.width, np.float32)))
    with torch.no_grad():
        model.embed.weight.copy_(torch.from_numpy(np.concatenate((first, matrix))))
    lower = all(word == word.lower() for word in words)
    return Loaded(config, model.eval().to(device), word_tokenizer(words, lower))


def word_tokenizer(words: list[str], lower: bool) -> Tokenizer:
    """A token for each word, in this order, behind the two special ones."""
    backend = Backend(models.WordLevel({UNKNOWN: 0, END: 1, **{word: i for i, word in enumerate(words, 2)}}, UNKNOWN))
    if lower:
        backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(WORD.pattern), "removed", invert=True)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (UNKNOWN, END)])
    single, pair = f"$A {END}", f"$A {END} $B {END}"
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=[(END, 1)])
    return Tokenizer(backend, bos=END, eos=END, pad=END)
