"""The same merge model in PyTorch: python benchmarks/torch_packed.py train FOLDER

As PyTorch users write it: random batches, `pack_padded_sequence` so that no padding is computed
anywhere, Adam, cross-entropy. Run by an interpreter with PyTorch, without TensorFlow.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
import workload
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

SHARE = 1 / 3  # of the captions are measured, after as many batches as WARM_UP
WARM_UP = 10


class MergeModel(nn.Module):
    """Image and words are added after the LSTM, as in model.py."""

    def __init__(self):
        super().__init__()
        self.image = nn.Linear(workload.FEATURE_SIZE, workload.UNITS)
        self.embedding = nn.Embedding(workload.VOCABULARY_SIZE, workload.EMBEDDING_SIZE)
        self.lstm = nn.LSTM(workload.EMBEDDING_SIZE, workload.UNITS, batch_first=True)
        self.merged = nn.Linear(workload.UNITS, workload.UNITS)
        self.logits = nn.Linear(workload.UNITS, workload.VOCABULARY_SIZE)
        self.dropout = nn.Dropout(0.5)

    def forward(self, features, tokens, lengths):
        """(B, feature_size), (B, T), (B,) -> logits (tokens, V), packed."""
        features = nn.functional.normalize(features)
        image = torch.relu(self.image(self.dropout(features)))  # (B, units)
        words = self.dropout(self.embedding(tokens))  # (B, T, embedding_size)
        words, _ = self.lstm(pack_padded_sequence(words, lengths, True, enforce_sorted=False))
        rows = torch.arange(len(tokens))[:, None].expand_as(tokens)
        rows = pack_padded_sequence(rows, lengths, True, enforce_sorted=False).data  # (tokens,)
        merged = torch.relu(self.merged(words.data + image[rows]))  # (tokens, units)
        return self.logits(self.dropout(merged))


def main(folder: Path) -> None:
    """Seconds an epoch, from a share of its batches."""
    torch.manual_seed(0)
    encode = workload.vocabulary().encode
    captions = [(row, torch.tensor(encode(line))) for row, line in workload.captions(SHARE)]
    features = workload.features(folder)
    model = MergeModel()
    optimizer = torch.optim.Adam(model.parameters(), lr=1.5e-3)
    loss_function = nn.CrossEntropyLoss()
    order = np.random.default_rng(0).permutation(len(captions))
    batches = np.split(order, range(workload.BATCH_SIZE, len(order), workload.BATCH_SIZE))
    for number, batch in enumerate(batches[:WARM_UP] + batches):
        if number == WARM_UP:
            start = time.perf_counter()
        chosen = [captions[i] for i in batch]
        tokens = pad_sequence([ids for _, ids in chosen], batch_first=True)  # (B, T + 1)
        lengths = torch.tensor([len(ids) - 1 for _, ids in chosen])  # (B,)
        images = torch.from_numpy(features[[row for row, _ in chosen]])  # (B, feature_size)
        targets = pack_padded_sequence(tokens[:, 1:], lengths, True, enforce_sorted=False).data
        optimizer.zero_grad()
        loss = loss_function(model(images, tokens[:, :-1], lengths), targets)
        loss.backward()
        optimizer.step()
    workload.report(seconds=(time.perf_counter() - start) / SHARE)


if __name__ == "__main__":
    main(Path(sys.argv[2]))
