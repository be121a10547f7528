"""CIDEr-D (Vedantam et al. 2015): pycocoevalcap's numbers, for one caption at a time.

Tokens are words, or their ids. pycocoevalcap would weigh all references anew for every batch.
"""

import math
from collections import Counter

ORDERS = (1, 2, 3, 4)  # words of an n-gram, for BLEU-4 and CIDEr
CIDER_SIGMA = 6.0  # words: CIDEr-D's tolerance for another length


class TfIdf:
    """Weighs a caption's n-grams by how few images' captions have them."""

    def __init__(self, frequencies: dict[tuple, int], images: int):
        """Of n-grams that are not in `frequencies`, one of the `images` is taken to have them."""
        # The weight of an n-gram of no image; without a dev split, when nothing is scored, 0.
        self.rarest = math.log(max(1, images))
        self.weights = {gram: self.rarest - math.log(n) for gram, n in frequencies.items()}

    def weigh(self, tokens: list) -> tuple[dict, list[float], int]:
        """TF-IDF of each n-gram, the norm of each order's vector, and the number of bigrams."""
        counts = Counter(ngrams(tokens))
        vector = {gram: n * self.weights.get(gram, self.rarest) for gram, n in counts.items()}
        squares = [0.0] * len(ORDERS)
        for gram, weight in vector.items():
            squares[len(gram) - 1] += weight * weight
        length = sum(count for gram, count in counts.items() if len(gram) == 2)
        return vector, [math.sqrt(square) for square in squares], length


class CiderD:
    """CIDEr-D of captions against their image's references."""

    def __init__(self, references: list[list[list]], corpus: list | None = None):
        """Weigh each image's captions, lists of tokens, by how many images an n-gram is of.

        These are the images of the `corpus`, where it is given: of few images such counts say
        little, and of a single one every weight is 0.
        """
        corpus = references if corpus is None else corpus
        self.tf_idf = TfIdf(image_frequencies(corpus), len(corpus))
        self.references = [[self.tf_idf.weigh(tokens) for tokens in lines] for lines in references]

    def score(self, image: int, tokens: list) -> float:
        """CIDEr-D, from 0 to 10, of one caption of an image, the image by its position."""
        return cider_d(self.tf_idf.weigh(tokens), self.references[image])


def cider_d(weighed: tuple, references: list[tuple]) -> float:
    """CIDEr-D of a caption against references, all as `TfIdf.weigh` gives them: 0 to 10."""
    vector, norms, length = weighed
    total = 0.0
    for reference, reference_norms, reference_length in references:
        products = [0.0] * len(ORDERS)
        for gram, weight in vector.items():
            if other := reference.get(gram):  # what is said more often than there is clipped
                products[len(gram) - 1] += min(weight, other) * other
        near = math.exp(-((length - reference_length) ** 2) / (2 * CIDER_SIGMA**2))
        for product, norm, reference_norm in zip(products, norms, reference_norms, strict=True):
            if product:
                total += near * product / (norm * reference_norm)
    return 10 * total / (len(ORDERS) * len(references))


def image_frequencies(corpus: list[list[list]]) -> Counter:
    """In how many images' captions, lists of tokens, each n-gram is."""
    grams = (set().union(*map(ngrams, lines)) for lines in corpus)
    return Counter(gram for image in grams for gram in image)


def ngrams(tokens: list) -> list[tuple]:
    """All runs of one to four tokens."""
    return [tuple(tokens[i : i + n]) for n in ORDERS for i in range(len(tokens) - n + 1)]
