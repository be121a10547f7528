"""The same networks in PyTorch: python benchmarks/torch_packed.py TASK FOLDER (train or updown)

As PyTorch users write them: random batches, `pack_padded_sequence` so that no padding is computed
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

SHARES = {"train": 1 / 3, "updown": workload.UPDOWN_SHARE}  # of the captions are measured,
WARM_UP = 10  # after as many batches


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


class UpDown(nn.Module):
    """Two LSTMs and attention to the cells between them, as in captioning/updown.py."""

    def __init__(self):
        super().__init__()
        units = workload.UPDOWN["units"]
        self.cells = nn.Linear(workload.CELL_SIZE, units)
        self.keys = nn.Linear(units, units // 2)
        self.image = nn.Linear(workload.CELL_SIZE, units)
        self.embedding = nn.Embedding(workload.VOCABULARY_SIZE, workload.EMBEDDING_SIZE)
        self.first = nn.LSTMCell(workload.EMBEDDING_SIZE + 2 * units, units)
        self.query = nn.Linear(units, units // 2, bias=False)
        self.score = nn.Linear(units // 2, 1, bias=False)
        self.second = nn.LSTMCell(2 * units, units)
        self.logits = nn.Linear(units, workload.VOCABULARY_SIZE)
        self.word_dropout, self.dropout = nn.Dropout(0.5), nn.Dropout(0.4)

    def forward(self, features, tokens, lengths):
        """(B, cells, cell_size), (B, T), (B,) -> logits (tokens, V), packed."""
        features = nn.functional.normalize(features.float(), dim=-1)
        seen = features * self.word_dropout(torch.ones_like(features[:, :1]))  # alike in all cells
        words = self.word_dropout(self.embedding(tokens))  # (B, T, embedding_size)
        words = pack_padded_sequence(words, lengths, True, enforce_sorted=False)
        seen = seen[words.sorted_indices]  # the longest caption's first
        image = torch.relu(self.image(seen.mean(1)))  # (B, units)
        cells = torch.relu(self.cells(seen))  # (B, cells, units)
        keys = self.keys(cells)  # (B, cells, units / 2)
        first = second = (torch.zeros_like(image),) * 2
        merged = []
        for now in words.data.split(words.batch_sizes.tolist()):  # (n, embedding_size)
            n = len(now)  # captions that have a word here
            first, second = [tuple(state[:n] for state in each) for each in (first, second)]
            first = self.first(torch.cat([second[0], image[:n], now], 1), first)
            matches = torch.tanh(keys[:n] + self.query(first[0])[:, None])  # (n, cells, units / 2)
            attended = (torch.softmax(self.score(matches), 1) * cells[:n]).sum(1)  # (n, units)
            second = self.second(torch.cat([attended, first[0]], 1), second)
            merged.append(image[:n] + second[0] + attended)
        return self.logits(self.dropout(torch.cat(merged)))


def main(task: str, folder: Path) -> None:
    """Seconds an epoch, from a share of its batches."""
    torch.manual_seed(0)
    share, encode = SHARES[task], workload.vocabulary().encode
    captions = [(row, torch.tensor(encode(line))) for row, line in workload.captions(share)]
    if task == "train":
        features, model = workload.features(folder), MergeModel()
        optimizer = torch.optim.Adam(model.parameters(), lr=1.5e-3)
    else:
        features, model = workload.cells(folder), UpDown()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    loss_function = nn.CrossEntropyLoss()
    order = np.random.default_rng(0).permutation(len(captions))
    batches = np.split(order, range(workload.BATCH_SIZE, len(order), workload.BATCH_SIZE))
    for number, batch in enumerate(batches[:WARM_UP] + batches):
        if number == WARM_UP:
            start = time.perf_counter()
        chosen = [captions[i] for i in batch]
        tokens = pad_sequence([ids for _, ids in chosen], batch_first=True)  # (B, T + 1)
        lengths = torch.tensor([len(ids) - 1 for _, ids in chosen])  # (B,)
        images = torch.from_numpy(features[[row for row, _ in chosen]])  # (B, …)
        targets = pack_padded_sequence(tokens[:, 1:], lengths, True, enforce_sorted=False).data
        optimizer.zero_grad()
        loss = loss_function(model(images, tokens[:, :-1], lengths), targets)
        loss.backward()
        optimizer.step()
    workload.report(seconds=(time.perf_counter() - start) / share)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
