"""Weights by regression: a small network that maps cheap numbers of a step to the weight that `exact` finds.

The objective J depends on the step only through the cumulant function A and both targets (kl.py). A few numbers say
most of it: the targets f and g, the first three cumulants of the change d under the large model, how sure the large
model is, and how far its choice and the changed one agree. They cost a few passes over the vocabulary, about as much
as a search on a CPU. `read_features` makes the numbers, `Predictor` is the network, and
`fit_predictor` trains one; the shipped one is data/predictor.json, with its measured error.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionlab.errors import CorruptFileError, MissingFileError
from fusionlab.kl import Array, Step

FEATURES = (
    "log_target_forward",  # log(kappa f)
    "log_target_reverse",  # log(kappa g)
    "log_scale",  # log kappa
    "mean",  # E_P[d]
    "log_variance",  # log Var_P(d)
    "skewness",  # cube root of the third central moment of d under P
    "entropy",  # H(P)
    "log_top",  # log of the largest probability under P
    "log_changed_top",  # log P of the token that log P + d prefers
    "change_of_top",  # d of P's own choice
    "change_of_changed_top",  # d of the token that log P + d prefers
)
LARGEST_WEIGHT = 2.0  # the paper's, and that of the weights it was fitted to
_TINY = 1e-9
FILE = "predictor.json"


@dataclass(frozen=True)
class Predictor:
    """A network of two hidden layers on standardised features; weights within (0, LARGEST_WEIGHT).

    centre, spread: (F,); layers: pairs of (outputs, inputs) matrix and (outputs,) bias.
    """

    centre: Array
    spread: Array
    layers: tuple[tuple[Array, Array], ...]

    def __call__(self, features: Array) -> Array:
        """features: (..., F) as `read_features` orders them -> weights (...)."""
        values = np.clip((features - self.centre) / self.spread, -8, 8)
        for matrix, bias in self.layers[:-1]:
            values = np.tanh(values @ matrix.T + bias)
        matrix, bias = self.layers[-1]
        return LARGEST_WEIGHT / (1 + np.exp(-(values @ matrix.T + bias)[..., 0]))

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values, numbers to six significant digits."""

        def plain(values: Array) -> Any:
            return [plain(row) for row in values] if values.ndim > 1 else [float(f"{value:.6g}") for value in values]

        return {
            "features": list(FEATURES),
            "centre": plain(self.centre),
            "spread": plain(self.spread),
            "layers": [[plain(matrix), plain(bias)] for matrix, bias in self.layers],
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Predictor:
        """What `to_dict` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        if list(record["features"]) != list(FEATURES):
            raise ValueError(f"features are {record['features']}, this version reads {list(FEATURES)}")
        layers = tuple(
            (np.asarray(matrix, dtype=float), np.asarray(bias, dtype=float)) for matrix, bias in record["layers"]
        )
        return cls(np.asarray(record["centre"], dtype=float), np.asarray(record["spread"], dtype=float), layers)


def read_features(step: Step, *, scale: float, wanted: NDArray[np.bool_] | None = None) -> Array:
    """The features of each expert at each row: (E, B, F) float64 on the host; 0 where not `wanted` (E, B)."""
    experts, rows, _ = step.shape
    chosen = np.arange(experts * rows) if wanted is None else np.flatnonzero(wanted)
    flat, row = step.deltas.flatten(0, 1), torch.from_numpy(chosen % rows).to(step.log_p.device)

    def of_row(values: Tensor) -> Tensor:
        return values if len(chosen) == rows == len(flat) else values[row]  # one expert at every row: nothing to copy

    log_p = of_row(step.log_p)  # (n, V)
    deltas = flat if len(chosen) == len(flat) else flat[torch.from_numpy(chosen).to(row)]  # (n, V)
    mean, variance = (step.start[:, :, place].ravel()[chosen] for place in (1, 2))
    p = step.log_p.exp()
    top_value, top = step.log_p.max(-1)
    changed = (log_p + deltas).argmax(-1)[:, None]  # (n, 1)
    at_top = deltas.gather(-1, of_row(top)[:, None])[:, 0]
    at_changed, changed_value = (values.gather(-1, changed)[:, 0] for values in (deltas, log_p))
    third = ((deltas - torch.from_numpy(mean).to(deltas)[:, None]).pow_(3).mul_(of_row(p))).sum(-1)
    measured = [third, of_row(torch.special.entr(p).sum(-1)), of_row(top_value), changed_value, at_top, at_changed]
    cubes, surprise, log_top, log_changed, of_top, of_changed = (np.asarray(each.double().cpu()) for each in measured)
    features = np.zeros((experts * rows, len(FEATURES)))
    features[chosen] = np.stack(
        [
            np.log(scale * np.maximum(step.target_forward.ravel()[chosen], 0) + _TINY),  # rounding may leave it below 0
            np.log(scale * np.maximum(step.target_reverse.ravel()[chosen], 0) + _TINY),
            np.full_like(mean, np.log(scale)),
            mean,
            np.log(variance + _TINY),
            np.cbrt(cubes),
            surprise,
            log_top,
            log_changed,
            of_top,
            of_changed,
        ],
        axis=-1,
    )
    return features.reshape(experts, rows, -1)


def rescale_features(features: Array, factor: float) -> Array:
    """The features of the same step when the constraint's scale is `factor` times as large; (..., F)."""
    scaled = features.copy()
    scaled[..., :2] = np.log((np.exp(features[..., :2]) - _TINY) * factor + _TINY)
    scaled[..., 2] += np.log(factor)
    return scaled


@lru_cache(maxsize=1)
def load_predictor() -> Predictor:
    """The predictor that ships in data/. Raises MissingFileError, CorruptFileError."""
    path = Path(str(resources.files("fusionlab_data"))) / FILE
    if not path.is_file():
        raise MissingFileError(f"{path} is missing", remedy="install fusionlab again, or run `fusionlab train predictor`")
    try:
        return Predictor.from_dict(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{path} is not a predictor: {error}", remedy="restore it (git checkout)") from error


def fit_predictor(
    features: Array,
    weights: Array,
    *,
    hidden: Sequence[int] = (32, 32),
    steps: int = 4000,
    batch: int = 1024,
    seed: int = 0,
) -> Predictor:
    """Fit a predictor to the weights of `exact`: features (n, F), weights (n,) in [0, LARGEST_WEIGHT].

    Minimised: the mean absolute error, which leaves the rare steps with two far minima to be wrong on.
    """
    torch.manual_seed(seed)
    spread = features.std(0) + _TINY
    centre = features.mean(0)
    x = torch.from_numpy(np.clip((features - centre) / spread, -8, 8)).float()
    y = torch.from_numpy(weights).float()
    sizes = [x.shape[1], *hidden, 1]
    linears = [torch.nn.Linear(inputs, outputs) for inputs, outputs in itertools.pairwise(sizes)]
    parameters = [parameter for linear in linears for parameter in linear.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(x), (batch,))
            values = x[rows]
            for linear in linears[:-1]:
                values = torch.tanh(linear(values))
            predicted = LARGEST_WEIGHT * torch.sigmoid(linears[-1](values)[:, 0])
            loss = (predicted - y[rows]).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    layers = tuple((linear.weight.detach().double().numpy(), linear.bias.detach().double().numpy()) for linear in linears)
    return Predictor(centre, spread, layers)
