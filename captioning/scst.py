"""Fine-tuning on CIDEr itself: self-critical sequence training (Rennie et al. 2017).

Cross-entropy teaches the network to continue human captions; at work it has to continue its own.
So it samples captions of the training photos, and each sample's probability is raised or lowered
by as much as its CIDEr-D is above or below that of the other samples of the same photo.

The trained network knows the training photos by heart, and what it says of them teaches little. So
a part of their features is hidden from it, by the dropout of its training, while it samples and
while it learns from that sample: the same part, for otherwise it would learn from another's words.
"""

import dataclasses
import math
from collections import Counter
from functools import cached_property

import numpy as np
import tensorflow as tf

from captioning import cli
from captioning.batches import pipeline
from captioning.captions import END, PADDING, START
from captioning.decoding import draw_captions
from captioning.networks import build_captioner, first_state, next_word
from captioning.scoring import CIDER_SIGMA, MAX_ORDER, ngrams
from captioning.training import EpochLog
from model import Captioner

SAMPLES = 5  # captions drawn of each photo; each one's baseline is the mean of the other four
HIDDEN = 0.3  # share of a photo's floats (benchmarks/quality.md)
MAX_WORDS = 16  # of a sample; 7 % of the training captions are longer, and all would pay for it
WIDTH_STEP = 4  # tokens; samples are padded to a multiple, for XLA compiles every width anew
END_WORD = "<end>"  # scored like a word: otherwise captions would stop in mid-sentence


def policy(captioner: Captioner, training: dict) -> Captioner:
    """A copy of a trained captioner, to be fine-tuned: only features are dropped, `HIDDEN` of them.

    The vectors of words stay as they are, before the LSTM and before the softmax: a photo's samples
    are too few to teach anything of a word, and would wear off the rare ones.
    """
    config = dataclasses.replace(captioner.config, training=training)
    network = build_captioner(dataclasses.replace(config, dropout=HIDDEN))
    network.set_weights(captioner.network.get_weights())
    for name in ("word_dropout", "merged_dropout"):
        network.get_layer(name).rate = 0.0
    for name in ("embedding", "logits"):
        network.get_layer(name).trainable = False
    return Captioner(network, captioner.vocabulary, config)


class CiderD:
    """CIDEr-D of captions against their image's references (Vedantam et al. 2015).

    The same numbers as pycocoevalcap's, which would weigh all references anew for every batch.
    """

    def __init__(self, references: list[list[list[str]]]):
        """Count in how many images each n-gram occurs, and weigh the references by it.

        Args:
            references: of each image, its captions as lists of tokens.
        """
        counted = [[Counter(ngrams(tokens)) for tokens in lines] for lines in references]
        frequencies = Counter(gram for lines in counted for gram in set().union(*lines))
        images = math.log(max(1, len(references)))  # no dev split: nothing will be scored
        self.rarest = images  # the weight of an n-gram of no image
        self.weights = {gram: images - math.log(count) for gram, count in frequencies.items()}
        self.references = [[self._weigh(counts) for counts in lines] for lines in counted]

    def score(self, image: int, tokens: list[str]) -> float:
        """CIDEr-D, from 0 to 10, of one caption of an image, the image by its position."""
        vector, norms, length = self._weigh(Counter(ngrams(tokens)))
        total = 0.0
        for reference, reference_norms, reference_length in self.references[image]:
            products = [0.0] * MAX_ORDER
            for gram, weight in vector.items():
                other = reference.get(gram)
                if other is not None:  # what is said more often than by the human is clipped
                    products[len(gram) - 1] += min(weight, other) * other
            near = math.exp(-((length - reference_length) ** 2) / (2 * CIDER_SIGMA**2))
            for product, norm, reference_norm in zip(products, norms, reference_norms, strict=True):
                if product:
                    total += near * product / (norm * reference_norm)
        return 10 * total / (MAX_ORDER * len(self.references[image]))

    def _weigh(self, counts: Counter) -> tuple[dict, list[float], int]:
        """TF-IDF of each n-gram, the norm of each order's vector, and the number of bigrams."""
        vector = {
            gram: count * self.weights.get(gram, self.rarest) for gram, count in counts.items()
        }
        squares = [0.0] * MAX_ORDER
        for gram, weight in vector.items():
            squares[len(gram) - 1] += weight * weight
        length = sum(count for gram, count in counts.items() if len(gram) == 2)
        return vector, [math.sqrt(square) for square in squares], length


class SampledBatches:
    """Captions that the network itself draws of the training photos, as `fit` takes them.

    In the form of `batches.CaptionBatches`: a sample's weight is its advantage, so that the
    cross-entropy's gradient is the policy's.

    Attributes:
        epoch: decides, together with the seed, the order and the samples of the next pass.
        rewards: CIDEr-D of the samples of this pass so far, a mean for each batch.
    """

    def __init__(
        self,
        captioner: Captioner,
        features: np.ndarray,
        photos: dict[int, list[str]],
        photos_per_batch: int,
        seed: int,
    ):
        """Weigh the references.

        Args:
            captioner: draws the samples, with the weights that it has at that moment; its network
                is compiled for training before the first of them.
            features: (N, …) as the network takes them, may be memory-mapped.
            photos: row of `features` -> its human captions, tokenized: the training split.
            photos_per_batch: each gives `SAMPLES` captions.
            seed: of the order and the samples.
        """
        self.captioner, self.features = captioner, features
        self.rows = np.array(list(photos))
        self.scorer = CiderD([[[*c.split(), END_WORD] for c in lines] for lines in photos.values()])
        self.photos_per_batch, self.seed = photos_per_batch, seed
        self.epoch = 0
        self.rewards: list[float] = []

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-len(self.rows) // self.photos_per_batch)

    def __iter__(self):
        """Yield ((features, inputs), targets, weights)."""
        self.rewards = []
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(len(self.rows))
        order = np.resize(order, (len(self), self.photos_per_batch))  # the last batch filled up
        for batch, photos in enumerate(order):
            features = self.features[self.rows[photos]]  # (P, …)
            seed = np.random.SeedSequence((self.seed, self.epoch, batch)).generate_state(2)
            tokens = self._sample(features, seed)  # (P * S, MAX_WORDS)
            longest = int((tokens != PADDING).sum(axis=1).max())
            tokens = tokens[:, : -(-longest // WIDTH_STEP) * WIDTH_STEP]
            rewards = self._score(photos, tokens)  # (P, S)
            self.rewards.append(float(rewards.mean()))
            others = (rewards.sum(axis=1, keepdims=True) - rewards) / (SAMPLES - 1)
            advantage = (rewards - others).reshape(-1, 1)  # (P * S, 1)
            inputs = np.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=START)
            weights = (tokens != PADDING) * advantage / len(tokens)
            repeated = np.repeat(features, SAMPLES, axis=0)  # (P * S, …)
            yield (repeated, inputs), tokens, weights.astype(np.float32)

    def dataset(self) -> tf.data.Dataset:
        """The same as a tf.data pipeline; nothing ahead of time, for each step changes the next."""
        return pipeline(self, self.photos_per_batch * SAMPLES, self.features)

    def _sample(self, features: np.ndarray, seed: np.ndarray) -> np.ndarray:
        """Draw `SAMPLES` captions of each image at random, each word with its probability.

        Args:
            features: (P, …).
            seed: (2,) uint32.

        Returns:
            Tokens (P * S, MAX_WORDS) int32, END and PADDING behind the words.
        """
        layers = self.captioner.network.layers
        drawn = [layer.seed_generator.state for layer in layers if hasattr(layer, "seed_generator")]
        before = [state.numpy() for state in drawn]
        state = self._begin(features)
        for variable, value in zip(drawn, before, strict=True):
            variable.assign(value)  # the step that learns from this will draw the same again
        return self._draw(state, tf.constant(seed.view(np.int32))).numpy()

    @cached_property
    def _begin(self):
        """Features to the state before the first word, computed as in the training step."""
        network = self.captioner.network
        return tf.function(
            lambda features: first_state(network, features, SAMPLES, training=True),
            jit_compile=network.jit_compile,  # elsewhere its dropout would draw other numbers
        )

    @cached_property
    def _draw(self):
        network = self.captioner.network
        width = self.photos_per_batch * SAMPLES
        return tf.function(
            lambda state, seed: draw_captions(
                lambda tokens, state: next_word(network, tokens, state),
                *(state, width, MAX_WORDS, seed),
            )
        )

    def _score(self, photos: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """CIDEr-D of every sample, (P, S)."""
        vocabulary = self.captioner.vocabulary
        rewards = []
        for photo, ids in zip(np.repeat(photos, SAMPLES), tokens, strict=True):
            end = [END_WORD] if END in ids else []
            rewards.append(self.scorer.score(photo, [*vocabulary.decode(ids).split(), *end]))
        return np.reshape(rewards, (len(photos), SAMPLES))


class CiderLog(EpochLog):
    """The log of a fine-tuning: its measure is CIDEr, on dev that of greedy captions."""

    measure = "cider"

    def __init__(self, *log, features: np.ndarray, photos: dict[int, list[str]], **options):
        """Take what `EpochLog` takes, and `features` and `photos` of the dev split."""
        super().__init__(*log, **options)
        self.dev_features = features[list(photos)]  # (N, …)
        self.scorer = CiderD([[caption.split() for caption in lines] for lines in photos.values()])
        self.before = self.dev_cider()  # of the model that fine-tuning starts from
        if self.before is not None:
            cli.say(f"before fine-tuning: dev cider {self.before:.4f}")

    def badness(self, value: float) -> float:
        """The most is best."""
        return -value

    def measured(self, logs: dict) -> tuple[float, float | None]:
        """The mean of the epoch's samples, and of the dev images' greedy captions."""
        return float(np.mean(self.train.rewards)), self.dev_cider()

    def dev_cider(self) -> float | None:
        """The mean of the dev images' greedy captions; None without any."""
        if not len(self.dev_features):
            return None
        captions = self.captioner.caption_features(self.dev_features)
        scores = [self.scorer.score(i, caption.split()) for i, caption in enumerate(captions)]
        return float(np.mean(scores))

    def close(self) -> None:
        """As the log of any training, and say so when it was in vain."""
        super().close()
        if (
            self.rows
            and self.before is not None
            and self.before > max(row["dev_cider"] for row in self.rows)
        ):
            cli.say("no epoch is better than what it started from: lower --learning_rate.")
