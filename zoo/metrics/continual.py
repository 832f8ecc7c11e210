"""What is measured in continual learning: counts for each task, the accuracy matrix, and the figures drawn from it.

The entry ``matrix[i, j]`` is the accuracy on the test set of task ``j`` after training on task ``i``, both from 0.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

NAN = float("nan")


def stream_summary(
    matrix: Tensor | Sequence[Sequence[float]],
    test_sizes: Sequence[int] | None = None,
    baseline: Sequence[float] | None = None,
) -> dict[str, float]:
    """Summarise an accuracy matrix by the figures that continual-learning papers report.

    With ``R = matrix``, tasks ``0 .. T-1`` and ``K = T-1`` the last one:

    ============================  =============================================================================
    average_accuracy              ``A_K``, where ``A_t = mean_{j <= t} R[t, j]``. Also "last" or "final" accuracy, ACC.
                                  Higher is better. Lopez-Paz and Ranzato, "Gradient Episodic Memory", NeurIPS 2017.
    average_incremental_accuracy  ``mean_t P_t``, where ``P_t = sum_{j <= t} m_j R[t, j] / sum_{j <= t} m_j`` is the
                                  accuracy over all ``m_j`` test images of the tasks so far; without ``test_sizes``
                                  ``P_t = A_t``. The first task counts. Higher is better.
                                  Rebuffi et al., "iCaRL", CVPR 2017.
    forgetting                    ``mean_{j < K} ( max_{j <= l < K} R[l, j] - R[K, j] )``. Lower is better; a term is
                                  negative where a task got better later.
                                  Chaudhry et al., "Riemannian Walk", ECCV 2018.
    forgetting_clipped            The same, but the maximum includes ``l = K``, so that no term is negative. Used by
                                  the code of L2P (Wang et al., CVPR 2022) and of the PILOT toolbox.
    step_forgetting               ``mean_{t >= 1} mean_{i < t} ( R[t-1, i] - R[t, i] )``: what one more task costs.
                                  Lower is better; not comparable with the two above. Used by the code of CODA-Prompt
                                  (Smith et al., CVPR 2023), which assumes tasks of equal size.
    backward_transfer             ``mean_{j < K} ( R[K, j] - R[j, j] )``. Higher is better. Gradient Episodic Memory.
    forward_transfer              ``mean_{j >= 1} ( R[j-1, j] - b_j )``, where ``b_j`` is the accuracy of the untrained
                                  model. Higher is better; needs ``baseline`` and the entries right above the diagonal.
                                  Gradient Episodic Memory.
    learning_accuracy             ``mean_j R[j, j]``. Higher is better.
                                  Riemer et al., "Learning to Learn without Forgetting", ICLR 2019.
    ============================  =============================================================================

    What is undefined is NaN, never 0: forgetting and transfer of a single task, forward transfer without a baseline,
    and every figure that reads an entry that was not measured. A task without any test image, which is a column without
    a number at or below the diagonal (or a test size of 0), is left out of all means.

    Args:
        matrix: Accuracies in percent, of shape (T, T); entries above the diagonal may be NaN. Or of shape (T, 1): one
            common test set for the whole stream, as in a domain-incremental stream; then forgetting, transfer and
            learning accuracy are undefined.
        test_sizes: Number of test images of each column.
        baseline: Accuracy of the untrained model on each task, in percent.

    Returns:
        The figures by name, in percent (differences in percentage points).

    Raises:
        ValueError: If the matrix is empty, neither square nor a column, or holds values outside 0 to 100, or if the
            length of ``test_sizes`` or ``baseline`` is not the number of columns.
    """
    r = torch.as_tensor(matrix, dtype=torch.float64, device="cpu")
    if r.ndim != 2 or r.numel() == 0 or r.shape[1] not in (1, r.shape[0]):
        raise ValueError(
            f"The accuracy matrix has shape {tuple(r.shape)}; it must be (T, T), or (T, 1) for one common test set."
        )
    if not ((r >= 0) & (r <= 100) | r.isnan()).all():
        raise ValueError(f"Accuracies are percent, from 0 to 100, but the matrix holds {r[~r.isnan()].tolist()}.")
    for name, values in (("test_sizes", test_sizes), ("baseline", baseline)):
        if values is not None and len(values) != r.shape[1]:
            raise ValueError(f"{name} has {len(values)} values for {r.shape[1]} columns of the accuracy matrix.")
    num_tasks, num_tests = r.shape
    sizes = torch.ones(num_tests).double() if test_sizes is None else torch.as_tensor(test_sizes).double()
    start = torch.full((num_tests,), NAN).double() if baseline is None else torch.as_tensor(baseline).double()

    if num_tests < num_tasks:
        stages = r[:, 0]
        undefined = ("forgetting", "forgetting_clipped", "step_forgetting", "backward_transfer", "forward_transfer")
        return {
            "average_accuracy": float(stages[-1]),
            "average_incremental_accuracy": float(stages.mean()),
            **dict.fromkeys((*undefined, "learning_accuracy"), NAN),
        }

    # A column without a number at or below the diagonal is a task without test images.
    tested = [j for j in range(num_tasks) if sizes[j] > 0 and not r[j:, j].isnan().all()]
    last = num_tasks - 1
    pooled = [
        (r[t, seen] * sizes[seen]).sum() / sizes[seen].sum()
        for t in range(num_tasks)
        if (seen := [j for j in tested if j <= t])
    ]
    old = [j for j in tested if j < last]
    steps = [
        _mean([r[t - 1, i] - r[t, i] for i in tested if i < t])
        for t in range(1, num_tasks)
        if any(i < t for i in tested)
    ]
    figures = {
        "average_accuracy": _mean([r[last, j] for j in tested]),
        "average_incremental_accuracy": _mean(pooled),
        "forgetting": _mean([r[j:last, j].max() - r[last, j] for j in old]),
        "forgetting_clipped": _mean([r[j:, j].max() - r[last, j] for j in old]),
        "step_forgetting": _mean(steps),
        "backward_transfer": _mean([r[last, j] - r[j, j] for j in old]),
        "forward_transfer": _mean([r[j - 1, j] - start[j] for j in tested if j > 0]),
        "learning_accuracy": _mean([r[j, j] for j in tested]),
    }
    return {name: float(value) for name, value in figures.items()}


def _mean(values: Sequence[Tensor]) -> Tensor:
    """Return the mean; NaN for no values and where one of them is NaN."""
    return torch.stack(list(values)).mean() if values else torch.tensor(NAN)


def count_correct(scores: Tensor, labels: Tensor, classes: range | None = None) -> Tensor:
    """Count right predictions; the class with the highest score is the prediction.

    Args:
        scores: Of shape (B, C); minus infinity for a class that is not known yet. An image is counted as wrong if no
            score is above minus infinity or one is NaN. Or predicted labels, int64 of shape (B,).
        labels: int64 of shape (B,).
        classes: Predict only among these; needs scores.

    Returns:
        A scalar, int64.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if labels.ndim != 1 or len(scores) != len(labels) or scores.ndim not in (1, 2):
        raise ValueError(
            f"Scores of shape {tuple(scores.shape)} and labels of shape {tuple(labels.shape)}; "
            "they must be (B, C), or (B,) for predicted labels, and (B,)."
        )
    if scores.ndim == 1:
        if classes is not None or scores.is_floating_point():
            raise ValueError(f"One {scores.dtype} value for each image; give scores of shape (B, C).")
        return (scores == labels).sum()
    if classes is not None:
        if not classes or not 0 <= min(classes) <= max(classes) < scores.shape[1]:
            raise ValueError(f"{classes} is not a range of the {scores.shape[1]} classes that have a score.")
        scores = scores[:, classes.start : classes.stop : classes.step]
    if not scores.numel():  # no image, where max has nothing to reduce
        return labels.new_zeros(())
    best, position = scores.max(dim=1)
    predicted = position if classes is None else classes.start + classes.step * position
    return ((predicted == labels) & (best > -torch.inf)).sum()


def add_at(counts: Tensor, index: int | tuple[int, int], number: Tensor | int) -> Tensor:
    """Return counts with a number added at one place.

    Not in place: a state made in Lightning's evaluation is an inference tensor, which refuses that afterwards.
    """
    counts = counts.clone()
    counts[index] += number
    return counts


def gather_padded(state: Tensor, group: Any = None) -> list[Tensor]:
    """Gather the counts of all processes, with zeros for tasks of which a process had no image yet.

    Args:
        state: Counts, of shape (T,); T may differ between processes.
        group: The process group; all processes by default.

    Returns:
        One tensor for each process, all of the largest shape.
    """
    counts = gather_all_tensors(state, group)
    size = max(len(count) for count in counts)
    return [F.pad(count, (0, size - len(count))) for count in counts]


class TaskAccuracy(Metric):
    """Accuracy on every task of a stream, with and without the task known; counts grow with the tasks.

    Higher is better. Exact in several processes, also where one of them has no image of a task. ``compute`` returns a
    dictionary, so a module logs its values and resets the metric itself::

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            images, labels = batch
            self.accuracy.update(self(images), labels, dataloader_idx, self.classes_of[dataloader_idx])

        def on_validation_epoch_end(self):
            values = self.accuracy.compute()  # equal on all processes
            self.log_dict({f"val/{name}": value for name, value in values.items()})
            self.accuracy.reset()

    Args:
        **kwargs: Of ``torchmetrics.Metric``.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = True  # states that grow cannot be merged by adding them
    correct: Tensor
    total: Tensor
    correct_known: Tensor
    total_known: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dist_sync_fn": gather_padded, **kwargs})
        for name in ("correct", "total", "correct_known", "total_known"):
            self.add_state(name, torch.zeros(0, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor, task: int, classes: range | None = None) -> None:
        """Count a batch of one task.

        Args:
            scores: Of shape (B, C); minus infinity for classes that are not known yet.
            labels: int64 of shape (B,).
            task: Index of the task, from 0.
            classes: The classes of the task, where the accuracy with the task known is wanted: predictions among these
                only. None where it means nothing, as in a domain-incremental stream.

        Raises:
            ValueError: If the task is negative, the shapes do not fit or ``classes`` are not among the C.
        """
        if task < 0:
            raise ValueError(f"task={task}; tasks are counted from 0.")
        if scores.ndim != 2:
            raise ValueError(f"Scores have shape {tuple(scores.shape)}; they must be (B, C).")
        if missing := max(0, task + 1 - len(self.total)):
            for name in self.metric_state:
                setattr(self, name, F.pad(getattr(self, name), (0, missing)))
        self.correct = add_at(self.correct, task, count_correct(scores, labels))
        self.total = add_at(self.total, task, len(labels))
        if classes is not None:
            self.correct_known = add_at(self.correct_known, task, count_correct(scores, labels, classes))
            self.total_known = add_at(self.total_known, task, len(labels))

    def compute(self) -> dict[str, Tensor]:
        """Return accuracies as fractions, scalars.

        Returns:
            ``task00/acc``, ``task01/acc``, ... for tasks of which there was an image; ``task00/acc_task_known``, ...
            where ``classes`` were given; ``acc`` over all images.
        """
        values = {}
        totals, totals_known = self.total.tolist(), self.total_known.tolist()
        for task, total in enumerate(totals):
            if total:
                values[f"task{task:02d}/acc"] = self.correct[task] / total
            if totals_known[task]:
                values[f"task{task:02d}/acc_task_known"] = self.correct_known[task] / totals_known[task]
        if sum(totals):
            values["acc"] = self.correct.sum() / sum(totals)
        return values


class AccuracyMatrix(Metric):
    """The accuracy matrix of a stream, for a module that keeps it itself.

    ``compute`` ends an evaluation: what was counted enters the matrix, and with it the checkpoint, in place of what was
    there, and the next ``update`` starts from zero. So call it on every process after each evaluation; exact in several
    processes. The matrix survives a checkpoint (its shape is fixed, so ``num_tasks`` must be the same when a file is
    loaded); counts of an evaluation that was not ended do not.

    Args:
        num_tasks: Number of tasks T of the whole stream.
        **kwargs: Of ``torchmetrics.Metric``.

    Raises:
        ValueError: If there is no task.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = True
    correct: Tensor
    total: Tensor
    counts: Tensor

    def __init__(self, num_tasks: int, **kwargs: Any) -> None:
        # Not cached: after load_state_dict the result is another one.
        super().__init__(**{"compute_with_cache": False, **kwargs})
        if num_tasks < 1:
            raise ValueError(f"num_tasks={num_tasks}; there must be at least 1.")
        self.num_tasks = num_tasks
        for name in ("correct", "total"):
            self.add_state(name, torch.zeros(num_tasks, num_tasks, dtype=torch.int64), dist_reduce_fx="sum")
        # Right and all, over all processes. A buffer, not a state: a checkpoint holds what process 0 has, and of a
        # state that would be its own share only. Integers, so that no precision setting rounds them.
        self.register_buffer("counts", torch.zeros(2, num_tasks, num_tasks, dtype=torch.int64))
        self.ended = False

    def update(self, scores: Tensor, labels: Tensor, trained: int, task: int) -> None:
        """Count a batch of one task.

        Args:
            scores: Of shape (B, C), or predicted labels, int64 of shape (B,).
            labels: int64 of shape (B,).
            trained: Index of the last task that was trained, from 0: the row.
            task: Index of the task the images are from: the column.

        Raises:
            ValueError: If an index is not below ``num_tasks`` or the shapes do not fit.
        """
        for name, index in (("trained", trained), ("task", task)):
            if not 0 <= index < self.num_tasks:
                raise ValueError(f"{name}={index}; with num_tasks={self.num_tasks} it is 0 to {self.num_tasks - 1}.")
        correct = count_correct(scores, labels)
        if self.ended:
            self.correct, self.total = torch.zeros_like(self.correct), torch.zeros_like(self.total)
            self.ended = False
        self.correct = add_at(self.correct, (trained, task), correct)
        self.total = add_at(self.total, (trained, task), len(labels))

    def compute(self) -> Tensor:
        """Return the matrix in percent, of shape (T, T), with NaN where nothing was tested."""
        counted = self.total > 0
        self.counts[:, counted] = torch.stack([self.correct, self.total])[:, counted]
        self.ended = True
        right, total = self.counts.unbind()
        return 100 * right / total  # 0 / 0 is NaN

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Count a batch, return the whole matrix, and let the evaluation go on; waits for the other processes."""
        self.update(*args, **kwargs)
        matrix: Tensor = self.compute()
        self.ended = False
        return matrix

    def reset(self) -> None:
        """Empty the matrix."""
        super().reset()
        self.counts.zero_()
        self.ended = False
