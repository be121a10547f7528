"""A decoder whose words choose which cells of the image are added to them (Xu et al. 2015)."""

from keras import layers

from captioning.decoder import LSTM, LSTMDecoder


class AttentionDecoder(LSTMDecoder):
    """The merge decoder with dot-product attention over cells; the LSTM's output is the query."""

    kinds = ("grid",)

    def build(self, config) -> None:
        width = config.merge_units
        self.mean_cell = layers.GlobalAveragePooling1D(name="mean_cell")
        self.image_input = self.add_feature_input("image", pooled=True)
        self.image = layers.Dense(width, activation="relu", name="image")
        # The same floats of all cells are dropped: otherwise neighbours would give them away.
        self.cell_input = self.add_feature_input("cell", noise_shape=(None, 1, None))
        self.cells = layers.Dense(width, activation="relu", name="cells")
        self.keys = layers.Dense(width, name="keys")
        self.lstm = LSTM(config.units, return_sequences=True, name="lstm")
        self.words = layers.Dense(width, name="words") if config.units != width else None
        self.query = layers.Dense(width, name="query")
        self.scores = layers.Dot(axes=2, name="scores")
        self.softmax = layers.Softmax(name="attention")
        self.attended = layers.Dot(axes=(2, 1), name="attended")
        self.image_step = layers.Reshape((1, width), name="image_step")
        self.merge = layers.Add(name="merge")
        self.merged = layers.Dense(width, activation="relu", name="merged")
        self.merged_dropout = self.add_dropout("merged", 0.6 * config.dropout)

    def project(self, features, training=None):
        """The mean cell (B, merge_units), keys and cells (B, cells, merge_units)."""
        image = self.image(self.image_input(self.mean_cell(features), training))
        cells = self.cells(self.cell_input(features, training))
        return image, self.keys(cells), cells

    def combine(self, image, hidden):
        """The image, its cells and the LSTM's output (B, T, units) -> logits (B, T, V)."""
        mean, keys, cells = image  # (B, merge_units), then (B, cells, merge_units) each
        words = self.read(hidden)  # (B, T, merge_units)
        attended = self.attended([self.look(keys, words), cells])  # (B, T, merge_units)
        merged = self.merge([self.image_step(mean), words, attended])
        return self.logits(self.merged_dropout(self.merged(merged)))

    def read(self, hidden):
        """The LSTM's output (B, T, units) at the width of the sum, (B, T, merge_units)."""
        return self.words(hidden) if self.words else hidden

    def look(self, keys, words):
        """Each word's weights over the cells, (B, T, cells)."""
        return self.softmax(self.scores([self.query(words), keys]))

    def attention(self, features, tokens):
        """How much each word looked at each cell, (B, T, cells)."""
        _, keys, _ = self.project(features)
        return self.look(keys, self.read(self.lstm(self.embed(tokens))))
