"""Fitting the contact head of an encoder of proteins on few structures (Rao et al. 2020, 2020.12.15.422761, A.7)."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from onefold.core.errors import UserError
from onefold.infer.proteins import windows
from onefold.infer.text_encoder import TextEncoder
from onefold.training.proteins.sparse_regression import fit_logistic

NEAREST = 6  # residues that are nearer along the chain touch anyhow
STRENGTH = 0.15  # of ESM's published fit: the inverse of the penalty


class Example(NamedTuple):
    """A chain and what is known of it: contacts Bool[L, L], known Bool[L] (which residues have places; None: all)."""

    sequence: str
    contacts: np.ndarray
    known: np.ndarray | None = None


@torch.no_grad()
def fit_contacts(encoder: TextEncoder, examples: Iterable[Example], strength: float = STRENGTH) -> int:
    """Fit the regression on the attention of all heads, in place; returns how many heads have a weight.

    Chains are read in windows where they are longer than the model. Memory: 4 bytes for each head and pair of residues.
    Raises UserError for an encoder without the head, and where nothing, or everything, touches.
    """
    if getattr(encoder.network, "regression", None) is None:
        raise UserError("this model has no contact head: it takes an encoder with contacts=true, such as ESM-1b")
    features, labels = [], []
    for example in examples:
        for part in windows(encoder, [example.sequence]):
            pairs = []
            for start, length in zip(part.starts, part.lengths):
                first, second = np.triu_indices(length, NEAREST)
                if example.known is not None:
                    there = example.known[start + first] & example.known[start + second]
                    first, second = first[there], second[there]
                pairs.append((first + 1, second + 1))  # behind the token that begins a chain
                labels.append(example.contacts[start + first, start + second])
            columns: list[list[np.ndarray]] = [[] for _ in pairs]
            for layer in encoder.network.coupled_attention(part.tokens, part.residues, None, part.segments):
                maps = layer.float().cpu().numpy()  # [B, heads, T, T]
                for row, (first, second) in enumerate(pairs):
                    columns[row].append(maps[row][:, first, second].T)
            features += [np.concatenate(own, axis=1) for own in columns]
    found = np.concatenate(labels) if labels else np.empty(0, bool)
    if not found.any() or found.all():
        raise UserError("the structures to fit on have no contacts between residues six or more apart")
    weights, bias = fit_logistic(np.concatenate(features), found, strength)
    head = encoder.network.regression
    head.weight.copy_(torch.from_numpy(weights)[None])
    head.bias.fill_(bias)
    return int(np.count_nonzero(weights))
