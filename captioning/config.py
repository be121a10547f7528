"""The few numbers that describe a captioner, in a file and in a program; without TensorFlow."""

from dataclasses import MISSING, dataclass, field, fields

from captioning.captions import MAX_CAPTION_WORDS
from captioning.encoders import ENCODERS, GRID_CELLS, KINDS
from captioning.files import InputError

# Upper bounds for the sizes read from a file: beyond them is a mistake or an attack.
LIMITS = dict.fromkeys(("feature_size", "vocabulary_size"), 2**20)
LIMITS |= dict.fromkeys(("embedding_size", "units", "merge_units"), 2**14)
LIMITS |= {"photo_size": 2**10, "max_length": MAX_CAPTION_WORDS, "members": 2**4}


@dataclass(frozen=True)
class CaptionerConfig:
    """The few numbers that, with the weights and the vocabulary, make a captioner.

    Raises InputError if one is not of its type, or out of its range.
    """

    feature_size: int  # floats per image, or per cell of its grid
    vocabulary_size: int
    max_length: int  # words in the longest training caption: decoding stops there
    encoder: str  # which CNN made the features
    weights_hash: str  # of that CNN, as `Encoder.weights_hash`
    features: str = "pooled"  # their kind, as `Encoder.kind`
    photo_size: int = 224  # pixels, the side that photos are reduced to, as `Encoder.photo_size`
    embedding_size: int = 256
    units: int = 256  # of the LSTM
    merge_units: int = 256  # of the layers where image and words are added
    dropout: float = 0.5
    decoder: str = "merge"  # a key of model.DECODERS, which takes such features
    members: int = 1  # networks of these sizes, whose logits are averaged
    training: dict = field(default_factory=dict)  # settings and best dev loss, for people to read

    def __post_init__(self):
        for known in fields(self):
            kind, value = known.type, getattr(self, known.name)
            if type(value) is not kind:
                raise InputError(f"{known.name} is {value!r:.50}, not of type {kind.__name__}")
        for name, limit in LIMITS.items():
            if not 1 <= getattr(self, name) <= limit:
                raise InputError(f"{name} is {getattr(self, name)}, not between 1 and {limit}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}, not from 0 to below 1")
        if self.decoder == "attention":
            raise InputError(
                "its decoder was removed: python preprocess.py --features grid, then "
                "python train.py --decoder updown"
            )
        self.check_choice("encoder", ENCODERS)
        self.check_choice("features", KINDS)

    def check_choice(self, name: str, known) -> None:
        """Raises InputError if the number called `name` is not one of the `known`."""
        if (value := getattr(self, name)) not in known:
            raise InputError(f"its {name} is {value!r:.50}, not one of {', '.join(known)}")

    @classmethod
    def parse(cls, description: dict) -> "CaptionerConfig":
        """The numbers that a file holds; raises InputError if one is unknown, or is not there."""
        known = {each.name for each in fields(cls)}
        needed = {f.name for f in fields(cls) if {f.default, f.default_factory} == {MISSING}}
        if wrong := (needed - description.keys()) | (description.keys() - known):
            raise InputError(f"its config lacks, or should not have, {', '.join(sorted(wrong))}")
        return cls(**description)

    @property
    def features_shape(self) -> tuple[int, ...]:
        """Of one image's features: (feature_size,), or (cells, feature_size) of a grid."""
        return (GRID_CELLS,) * (self.features == "grid") + (self.feature_size,)
