"""What is measured in few-shot class-incremental learning: all, base and novel classes after each session.

Session 0 learns the base classes, session t > 0 a few novel ones. All classes seen so far compete in every prediction.
"""

from collections.abc import Sequence
from math import isnan

import torch
from torch import Tensor

NAN = float("nan")


def harmonic_mean(base: float, novel: float) -> float:
    """Return ``2 b n / (b + n)`` of the accuracies on base and novel classes; higher is better.

    It is 0 for a model that knows one group only, which the accuracy over all classes hides: with 60 of 100 classes in
    the base session, a model that never answers with a novel class can still have 60 %.

    Args:
        base: Accuracy on base classes, not negative.
        novel: Accuracy on novel classes, in the same unit. NaN before there is any.

    Returns:
        The mean, in the unit of the arguments; 0 if both are 0, NaN if one is NaN.

    Source:
        Xian et al., "Zero-Shot Learning - A Comprehensive Evaluation of the Good, the Bad and the Ugly", TPAMI 2019;
        for few-shot streams Peng et al., "Few-Shot Class-Incremental Learning from an Open-Set Perspective", ECCV 2022.
    """
    return 2 * base * novel / (base + novel) if base + novel != 0 else 0.0


def few_shot_figures(confusion: Tensor, num_base: int) -> dict[str, float]:
    """Return what one evaluation says about base and novel classes.

    With ``n_ij`` images of class i taken for class j, and classes below ``num_base`` the base classes:

    ======================  ==========================================================================================
    acc                     ``sum_i n_ii / sum_ij n_ij``; acc_base, acc_novel: the same over the rows of one group.
    harmonic_mean           Of acc_base and acc_novel, see :func:`harmonic_mean`.
    acc_class_mean          Mean over classes of ``n_ii / sum_j n_ij``; also acc_base_class_mean, acc_novel_class_mean.
    novel_as_base           Share of the images of novel classes that were taken for a base class. Lower is better.
    base_as_novel           The other way round. Lower is better.
    ======================  ==========================================================================================

    Args:
        confusion: Counts of shape (C, C), true classes in rows, as torchmetrics' ``MulticlassConfusionMatrix`` gives.
        num_base: Number of base classes.

    Returns:
        Fractions by name. NaN where there is no image; a class without images is left out of the means over classes.

    Raises:
        ValueError: If the counts are not square or ``num_base`` is not among the classes.
    """
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"The confusion matrix has shape {tuple(confusion.shape)}; it must be (C, C).")
    if not 1 <= num_base <= len(confusion):
        raise ValueError(f"num_base={num_base} must be from 1 to the number of classes, {len(confusion)}.")
    counts = confusion.double().cpu()
    right, total = counts.diagonal(), counts.sum(dim=1)
    groups = {"": slice(None), "_base": slice(num_base), "_novel": slice(num_base, None)}
    figures = {f"acc{name}": ratio(right[rows].sum(), total[rows].sum()) for name, rows in groups.items()}
    figures["harmonic_mean"] = harmonic_mean(figures["acc_base"], figures["acc_novel"])
    for name, rows in groups.items():
        each = (right / total)[rows]
        seen = each[~each.isnan()]
        figures[f"acc{name}_class_mean"] = float(seen.mean())  # of nothing: NaN
    figures["novel_as_base"] = ratio(counts[num_base:, :num_base].sum(), total[num_base:].sum())
    figures["base_as_novel"] = ratio(counts[:num_base, num_base:].sum(), total[:num_base].sum())
    return figures


def ratio(part: Tensor, whole: Tensor) -> float:
    """Return a share of a whole, NaN of nothing."""
    return float(part / whole)  # floats: 0 / 0 is NaN


def few_shot_curves(
    matrix: Tensor | Sequence[Sequence[float]], test_sizes: Sequence[int] | None = None
) -> dict[str, list[float]]:
    """Return the accuracies after each session.

    With ``R[t, j]`` the accuracy on the classes of session j after session t, and ``m_j`` test images of them:

    =============  ====================================================================================================
    all            ``A_t = sum_{j <= t} m_j R[t, j] / sum_{j <= t} m_j``, over all classes seen.
    base           ``R[t, 0]``.
    novel          The same as A_t, over sessions 1 to t; NaN for t = 0.
    harmonic_mean  Of base and novel, see :func:`harmonic_mean`; NaN for t = 0.
    =============  ====================================================================================================

    Args:
        matrix: Accuracies of shape (T, T); entries above the diagonal are not read.
        test_sizes: Number of test images of each session. Default: equal.

    Returns:
        A list of T values for each name, in the unit of the matrix.

    Raises:
        ValueError: If the matrix is not square, or ``test_sizes`` has another length.
    """
    r = torch.as_tensor(matrix, dtype=torch.float64, device="cpu")
    if r.ndim != 2 or r.shape[0] != r.shape[1] or not r.numel():
        raise ValueError(f"The accuracy matrix has shape {tuple(r.shape)}; it must be (T, T).")
    sizes = torch.ones(len(r)).double() if test_sizes is None else torch.as_tensor(test_sizes).double()
    if len(sizes) != len(r):
        raise ValueError(f"test_sizes has {len(sizes)} values for {len(r)} sessions.")

    def pooled(t: int, first: int) -> float:
        seen = slice(first, t + 1)
        return float((r[t, seen] * sizes[seen]).sum() / sizes[seen].sum())

    sessions = range(len(r))
    base, novel = [float(r[t, 0]) for t in sessions], [pooled(t, 1) for t in sessions]
    return {
        "all": [pooled(t, 0) for t in sessions],
        "base": base,
        "novel": novel,
        "harmonic_mean": [harmonic_mean(b, n) for b, n in zip(base, novel, strict=True)],
    }


def few_shot_summary(
    matrix: Tensor | Sequence[Sequence[float]], test_sizes: Sequence[int] | None = None
) -> dict[str, float]:
    """Summarise a few-shot stream by the figures that papers report.

    Of the curves of :func:`few_shot_curves`, with T the last session:

    =====================  ============================================================================================
    last_accuracy          ``A_T``. Higher is better.
    average_accuracy       ``mean_{t = 0..T} A_t``. Higher is better.
    base_accuracy          Base classes after the last session. Higher is better.
    novel_accuracy         Novel classes after the last session. Higher is better.
    harmonic_mean          Of these two. Higher is better.
    average_harmonic_mean  Mean over sessions 1 to T. Higher is better.
    performance_drop       ``PD = A_0 - A_T``. Lower is better, but it rewards a low start: never alone.
    =====================  ============================================================================================

    Args:
        matrix: As of :func:`few_shot_curves`.
        test_sizes: As of :func:`few_shot_curves`.

    Returns:
        The figures by name, in the unit of the matrix. NaN where there is no novel class yet.

    Raises:
        ValueError: As of :func:`few_shot_curves`.

    Source:
        Tao et al., "Few-Shot Class-Incremental Learning", CVPR 2020 (accuracies); Zhang et al., "Few-Shot Incremental
        Learning with Continually Evolved Classifiers", CVPR 2021 (performance drop).
    """
    curves = few_shot_curves(matrix, test_sizes)
    means = [value for value in curves["harmonic_mean"] if not isnan(value)]
    return {
        "last_accuracy": curves["all"][-1],
        "average_accuracy": sum(curves["all"]) / len(curves["all"]),
        "base_accuracy": curves["base"][-1],
        "novel_accuracy": curves["novel"][-1],
        "harmonic_mean": curves["harmonic_mean"][-1],
        "average_harmonic_mean": sum(means) / len(means) if means else NAN,
        "performance_drop": curves["all"][0] - curves["all"][-1],
    }
