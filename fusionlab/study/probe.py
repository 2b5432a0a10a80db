"""What the study measures on a loaded team besides answers: weights token by token, and how alike changes are.

Symbols as in `interference`: P the large model, Q the small one, R_t expert t, d_t = log R_t - log Q.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from fusionlab.study.interference import ADAPTERS
from fusionlab.study.trajectories import weight_rows
from fusionlab.tasks import Task

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from fusionlab.team import Team

Progress = Callable[[str], object]
ONE, SEVERAL = "exact", "evidence"  # solvers of the traces


def measure_weights(
    team: Team, tasks: Mapping[str, Task], *, items: int, batch_size: int = 10, progress: Progress = lambda text: None
) -> pd.DataFrame:
    """Weights of the first `items` test items per task: by the own expert (where there is one), and by all.

    Returns the frame that `trajectories` describes.
    """
    import pandas

    parts = []
    for name, task in tasks.items():
        asked = task.test[:items]
        prompts = [task.prompt(item) for item in asked]
        settings = [("own", ONE, [name])] if name in team.experts else []
        settings += [("all", SEVERAL, list(team.experts))] if len(team.experts) > 1 else []
        for loaded, method, experts in settings:
            progress(f"{name}: weights, {loaded}")
            result = team.generate(prompts, method=method, experts=experts, stop=task.stop, trace="light",
                                   max_new_tokens=task.max_new_tokens, batch_size=batch_size)  # fmt: skip
            parts.append(weight_rows(result.traces, [item.id for item in asked], task=name, loaded=loaded))
    return pandas.concat(parts, ignore_index=True) if parts else pandas.DataFrame()


@torch.inference_mode()
def measure_likeness(
    team: Team, tasks: Mapping[str, Task], *, items: int, progress: Progress = lambda text: None
) -> pd.DataFrame:
    """How alike the experts' changes are, at every position of the first `items` test items' own targets.

    Returns the frame that `interference` describes: pairs of an expert with itself (its size) included, and the
    adapters' weight changes where all experts are adapters.
    """
    import pandas

    names = list(team.experts)
    rows: list[dict[str, Any]] = []
    for task in tasks.values():
        progress(f"{task.name}: likeness")
        sums = torch.zeros(len(names), len(names), dtype=torch.float64)
        cosines, positions = torch.zeros_like(sums), 0
        for item in task.test[:items]:
            covariance = covariance_of_changes(team, task.prompt(item), task.target(item))  # (N, E, E)
            scale = covariance.diagonal(dim1=1, dim2=2).sqrt()  # (N, E)
            cosines += (covariance / (scale[:, :, None] * scale[:, None, :]).clamp_min(1e-12)).sum(0)
            sums += covariance.sum(0)
            positions += len(covariance)
        for a, b in itertools.combinations_with_replacement(range(len(names)), 2):
            rows.append({"task": task.name, "first": names[a], "second": names[b], "covariance": float(sums[a, b]),
                         "variance_first": float(sums[a, a]), "variance_second": float(sums[b, b]),
                         "cosine": float(cosines[a, b]) / max(positions, 1), "positions": positions})  # fmt: skip
    return pandas.DataFrame(rows + adapter_rows(team))


def covariance_of_changes(team: Team, prompt: str, target: str) -> Tensor:
    """(N, E, E) nats²: Cov_P(d_s, d_t) before each of the N tokens of `target`, in float64."""
    log_p, log_q = (log_probs_of(team, name, prompt, target) for name in ("large", "small"))  # (N, V)
    p = log_p.exp()
    changes = torch.stack([log_probs_of(team, name, prompt, target) - log_q for name in team.experts])  # (E, N, V)
    changes -= torch.einsum("nv,env->en", p, changes)[..., None]  # centred under P
    return torch.einsum("nv,env,fnv->nef", p.double(), changes.double(), changes.double())


def log_probs_of(team: Team, name: str, prompt: str, target: str) -> Tensor:
    """(N, V) nats: one member's log-probabilities before every token of the target."""
    from fusionlab.baselines import selected_alone

    start, ids = len(team.encode([prompt], name)[0]), team.encode([prompt + target], name)[0]
    model = team.model_of(name)
    with selected_alone(team, name):
        logits = model(torch.tensor([ids], device=model.device)).logits[0, start - 1 : len(ids) - 1, : team.width]
    return torch.log_softmax(logits.float(), -1).cpu()


def adapter_rows(team: Team) -> list[dict[str, Any]]:
    """Cosines of the adapters' weight changes s U D over all modules; none unless every expert is an adapter.

    <U_a D_a, U_b D_b> = sum of (U_a^T U_b) * (D_a D_b^T), so that no full matrix is made.
    """
    names = list(team.experts)
    if team.backbone is None or not all(map(team.is_adapter, names)):
        return []
    changes = {name: team.backbone.adapter(name).changes for name in names}

    def inner(a: str, b: str) -> float:
        total = 0.0
        for module in changes[a].keys() & changes[b].keys():
            (down_a, up_a, scale_a), (down_b, up_b, scale_b) = changes[a][module], changes[b][module]
            product = (up_a.double().T @ up_b.double()) * (down_a.double() @ down_b.double().T)
            total += scale_a * scale_b * float(product.sum())
        return total

    rows = []
    for a, b in itertools.combinations(names, 2):
        covariance, first, second = inner(a, b), inner(a, a), inner(b, b)
        cosine = covariance / math.sqrt(first * second) if first > 0 and second > 0 else math.nan
        rows.append({"task": ADAPTERS, "first": a, "second": b, "covariance": covariance, "variance_first": first,
                     "variance_second": second, "cosine": cosine, "positions": 1})  # fmt: skip
    return rows
