"""FewShotClassIncremental: many images of many classes first, then five images of a few new ones, again and again.

The baseline trains an encoder with a cosine classifier on the base session, freezes it, and makes the mean feature of
each class its row of the classifier: of the base classes after their session, of new classes from their few shots. On
top of it stand eight tricks, each a switch, in three groups: three keep old classes apart (contrastive, prototypes,
pseudo_classes), two learn the new ones (finetuning, subnet), three train better features (larger_encoder, pretraining,
rotation). Each has a file of its own beside this one.

Roy, Park, Fahrezi, Etemad, "A Bag of Tricks for Few-Shot Class-Incremental Learning", TMLR 2024,
https://arxiv.org/abs/2403.14392. No official code was found.

What differs: of the paper only the abstracts and a summary were at hand. Which tricks there are is the paper's; how
each works is taken from the method that introduced it (named in its file), and what neither fixes is our choice. So a
result is that of the tricks as they stand here, not of the paper's table. Version 2 of the paper counts six tricks: it
joins finetuning and subnet, and no longer counts the larger encoder.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics.classification import MulticlassConfusionMatrix

from zoo.continual.learner import StreamLearner
from zoo.fewshot.contrastive import BatchContrast, QueueContrast, StrongViews
from zoo.fewshot.cosine_classifier import CosineClassifier, cosine_logits
from zoo.fewshot.finetuning import moving_only, tuned_parameters
from zoo.fewshot.plain_images import average_statistics, plain_batches
from zoo.fewshot.pretraining import InstanceContrast
from zoo.fewshot.prototypes import AssignedPrototypes, Neck, PrototypeKind, dot_regression_loss
from zoo.fewshot.pseudo_classes import PseudoClasses, PseudoClassName
from zoo.fewshot.rotation import RotationHead
from zoo.fewshot.subnet import Subnet, SubnetPart, SubnetScore
from zoo.fewshot.tricks import (
    Trick,
    check_positive,
    check_same_backbone,
    check_same_tricks,
    check_sessions,
    check_tricks,
)
from zoo.functional import Task
from zoo.metrics import few_shot_figures
from zoo.nn import ClassMeans, CosineWithWarmup, check_state, create_backbone, drop_part, freeze, restore_part
from zoo.precision import check_average, restore_quantization, save_quantization


class FewShotClassIncremental(StreamLearner):
    """Class means on a cosine classifier, with any of eight tricks that train it better.

    It needs a stream whose first task is large and that can show a task's training images without augmentation
    (``plain_train_dataloader``), such as :class:`~zoo.datamodules.FewShotIncrementalDataModule`. No image of a past
    session is kept, only its class means. A session in which nothing is tuned still takes one epoch.

    Args:
        num_classes: Number of classes of the whole stream.
        tricks: Which tricks are on, of "contrastive", "prototypes", "pseudo_classes", "finetuning", "subnet",
            "larger_encoder", "pretraining" and "rotation". Default: none, the baseline. The arguments below that belong
            to a trick count only with it.
        backbone: A timm model by name, without the trick "larger_encoder".
        larger_backbone: The one with it.
        pretrained: See :func:`zoo.nn.create_backbone`, as the next three.
        checkpoint_path: See there.
        mean: See there.
        std: See there.
        backbone_args: More arguments of ``timm.create_model`` for ``backbone``.
        larger_backbone_args: The same for ``larger_backbone``.
        train_backbone: Whether the base session trains the encoder. Without, it stays as its weights are, in evaluation
            mode, and can be quantised (:class:`~zoo.callbacks.QuantizeFrozen`); the tricks "prototypes",
            "pseudo_classes" and "larger_encoder" go with that.
        scale: Factor of the cosines in every cross-entropy.
        normalize_before_mean: Whether features are scaled to unit length before they are averaged.
        contrastive_form: "in_batch" compares the views of a batch (SupCon), "queue" large and small crops with keys of
            earlier batches (SAVC).
        contrastive_weight: Factor of the contrastive loss.
        temperature: Of the contrastive loss.
        num_views: Strong views of each image, for "in_batch".
        projection_size: Length of a projection, here and in the pretraining.
        queue_size: Keys that "queue" remembers.
        key_momentum: By how much its second encoder stays as it is at each step.
        prototype_kind: "etf", a simplex, or "optimized", for more classes and pseudo-classes than dimensions.
        prototype_loss: "ce", cross-entropy of the cosines, or "dr", dot regression (NC-FSCIL).
        prototype_negatives: Whether the vectors of "known" classes or of "all", those to come too, compete in "ce".
        assignment: Classes take vectors by "index", or those nearest to their means ("hungarian"): in the base session
            this needs an encoder that has learned something, by pretraining or from weights.
        neck: "mlp" puts a small network between features and prototypes, "identity" nothing.
        embedding_size: Length of a prototype with the neck "mlp".
        inference: Classify by "class_mean", or by the "assigned" vectors, which new classes reach with finetuning only.
        pseudo_classes: Which transforms make pseudo-classes.
        finetune_optimizer: Makes the optimizer of finetuning; its rate is that of the new rows. New in each session.
        encoder_lr: Rate of the last stage of the encoder (and of the neck).
        tuned_stage: Part of the timm model that is tuned. Default: its last stage.
        refresh_means: Whether new rows become the means of their shots again after finetuning.
        subnet_fraction: Share of each tensor that is the minor part.
        subnet_score: "magnitude", or "random", the control that an ablation needs.
        subnet_part: Which part moves.
        pretraining_epochs: Of the epochs of the base session, the first ones that are the pretraining.
        pretraining_lr: Peak of its SGD, falling along half a cosine: 0.06 for 256 images a step.
        pretraining_temperature: Of its loss.
        rotation_weight: Factor of the loss of rotations.
        view_scale: Smallest and largest share of the area that a strong view keeps.
        view_flip: Whether strong views may be mirrored.
        optimizer: Makes the optimizer of the base session.
        schedule: Makes its schedule, of the optimizer and the number of its steps; stepped after each.
        class_names: Name of each label, for predictions.

    Good to know:
        Logged beside what :class:`~zoo.continual.StreamLearner` logs: ``train/loss``, and the figures of
        :func:`zoo.metrics.few_shot_figures` as ``<split>/acc_base``, ``<split>/acc_novel``, ``<split>/harmonic_mean``
        and so on, once they are defined. A run can start its increments from the checkpoint of a base session with
        other choices of finetuning and subnet.

    Raises:
        ValueError: If an argument is out of range or tricks do not go together.

    Source:
        Roy et al., "A Bag of Tricks for Few-Shot Class-Incremental Learning", TMLR 2024. Baseline: Zhang et al.,
        "Few-Shot Incremental Learning with Continually Evolved Classifiers", CVPR 2021.
    """

    session: Tensor
    pretraining: Tensor
    seen: Tensor

    def __init__(
        self,
        num_classes: int,
        tricks: list[Trick] | None = None,
        backbone: str = "cifar_resnet20",
        larger_backbone: str = "cifar_resnet18",
        pretrained: bool | Literal["offline"] = False,
        checkpoint_path: str | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        backbone_args: dict[str, Any] | None = None,
        larger_backbone_args: dict[str, Any] | None = None,
        train_backbone: bool = True,
        scale: float = 16.0,
        normalize_before_mean: bool = False,
        contrastive_form: Literal["in_batch", "queue"] = "in_batch",
        contrastive_weight: float = 1.0,
        temperature: float = 0.07,
        num_views: int = 2,
        projection_size: int = 128,
        queue_size: int = 8192,
        key_momentum: float = 0.999,
        prototype_kind: PrototypeKind = "etf",
        prototype_loss: Literal["ce", "dr"] = "ce",
        prototype_negatives: Literal["known", "all"] = "known",
        assignment: Literal["index", "hungarian"] = "index",
        neck: Literal["mlp", "identity"] = "mlp",
        embedding_size: int = 512,
        inference: Literal["class_mean", "assigned"] = "class_mean",
        pseudo_classes: PseudoClassName = "rotation2",
        finetune_optimizer: OptimizerCallable = lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
        encoder_lr: float = 1e-4,
        tuned_stage: str | None = None,
        refresh_means: bool = True,
        subnet_fraction: float = 0.3,
        subnet_score: SubnetScore = "magnitude",
        subnet_part: SubnetPart = "minor",
        pretraining_epochs: int = 200,
        pretraining_lr: float = 0.03,
        pretraining_temperature: float = 0.5,
        rotation_weight: float = 0.5,
        view_scale: tuple[float, float] = (0.2, 1.0),
        view_flip: bool = True,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.SGD(
            parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
        ),
        schedule: Callable[[Optimizer, int], LRScheduler] = CosineWithWarmup,
        class_names: list[str] | None = None,
    ) -> None:
        super().__init__(class_names)
        self.tricks = check_tricks(tricks or (), train_backbone)
        check_positive(scale=scale, temperature=temperature, pretraining_temperature=pretraining_temperature)
        self.save_hyperparameters(ignore=["optimizer", "schedule", "finetune_optimizer"])
        self.options: Any = self.hparams  # read as attributes
        self.num_classes = num_classes
        self.optimizer, self.schedule, self.finetune_optimizer = optimizer, schedule, finetune_optimizer

        larger = "larger_encoder" in self.tricks
        self.backbone = create_backbone(
            larger_backbone if larger else backbone, pretrained, checkpoint_path, mean, std,
            **((larger_backbone_args if larger else backbone_args) or {}),
        )  # fmt: skip
        if not train_backbone:
            freeze(self.backbone)
        size, views = self.backbone.num_features, StrongViews((view_scale[0], view_scale[1]), view_flip)
        self.pseudo = PseudoClasses(pseudo_classes if "pseudo_classes" in self.tricks else "none")
        num_rows = num_classes * len(self.pseudo)

        self.neck: nn.Module = nn.Identity()
        self.prototypes: AssignedPrototypes | None = None
        if "prototypes" in self.tricks:
            self.neck = Neck(size, embedding_size) if neck == "mlp" else self.neck
            self.prototypes = AssignedPrototypes(num_rows, embedding_size if neck == "mlp" else size, prototype_kind)
        self.classifier = CosineClassifier(num_rows, self.prototypes.vectors.shape[1] if self.prototypes else size)
        self.contrast: BatchContrast | QueueContrast | None = None
        if "contrastive" in self.tricks and contrastive_form == "in_batch":
            self.contrast = BatchContrast(size, projection_size, temperature, views, num_views)
        elif "contrastive" in self.tricks:
            self.contrast = QueueContrast(self.backbone, projection_size, temperature, views, queue_size, key_momentum)
        self.instances: InstanceContrast | None = None
        if "pretraining" in self.tricks:
            self.instances = InstanceContrast(size, projection_size, pretraining_temperature, views)
        self.rotation = RotationHead(size) if "rotation" in self.tricks else None
        self.subnet: Subnet | None = None
        if "subnet" in self.tricks:
            self.subnet = Subnet(self.tuned_parameters(), subnet_fraction, subnet_score, subnet_part)

        # Which part of the stream the weights belong to; a run that is resumed within a session reads it here.
        self.register_buffer("session", torch.zeros((), dtype=torch.int64))
        self.register_buffer("pretraining", torch.tensor(self.instances is not None))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))
        self.confusion = MulticlassConfusionMatrix(num_classes)

    # Prediction -----------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """Return scores of shape (B, C), float32, of images in [0, 1]; -inf for classes not seen yet."""
        embeddings = self.embed(self.backbone(self.pseudo.expand_images(images)))
        rows: Tensor = self.classifier.weight
        if self.prototypes is not None and self.options.inference == "assigned":
            rows = self.prototypes.of(torch.arange(len(rows), device=rows.device))
        scores = self.pseudo.aggregate(cosine_logits(embeddings, rows, self.options.scale))
        return scores.masked_fill(~self.seen, -torch.inf)

    def embed(self, features: Tensor) -> Tensor:
        """Return what is compared with the classifier's rows: the features, or with prototypes unit vectors."""
        if self.prototypes is None:
            return features
        return F.normalize(self.neck(features).float(), dim=1)

    @torch.no_grad()
    def add_classes(self, images: Tensor, labels: Tensor) -> None:
        """Learn classes from a few images at once, without a Trainer; what was known of these classes is replaced.

        Args:
            images: In [0, 1], shape (B, C, H, W), on the module's device.
            labels: int64 of shape (B,), below ``num_classes``.
        """
        modes = {module: module.training for module in self.modules()}
        self.eval()
        sums, counts = self.sum_features([(images, labels)])
        self.write_means(sums, counts)
        for module, mode in modes.items():
            module.training = mode

    def count(self, scores: Tensor, labels: Tensor, dataloader_idx: int) -> None:
        """Count the right answers, and which classes were taken for which."""
        super().count(scores, labels, dataloader_idx)
        self.confusion.update(scores.argmax(dim=1), labels)

    def on_validation_epoch_end(self) -> None:
        """Log the accuracies, and what they are on base and novel classes."""
        super().on_validation_epoch_end()
        if self.trainer.sanity_checking:
            return
        split = "test" if self.trainer.testing else getattr(self.datamodule, "evaluate", "val")
        figures = few_shot_figures(self.confusion.compute(), self.tasks[0].classes.stop)
        self.confusion.reset()
        del figures["acc"]  # logged already
        self.log_dict({f"{split}/{k}": v for k, v in figures.items() if v == v}, sync_dist=True)  # not NaN

    # Sessions -------------------------------------------------------------------------------------------------------

    @property
    def tasks(self) -> list[Task]:
        """The sessions of the stream."""
        tasks: list[Task] = self.datamodule.tasks
        return tasks

    @property
    def pretraining_epochs(self) -> int:
        """First epochs of the base session that are the pretraining."""
        return int(self.options.pretraining_epochs) if "pretraining" in self.tricks else 0

    def setup(self, stage: str) -> None:
        """Check that the stream is one that this method learns.

        Raises:
            TypeError: If it is none, or does not show its images without augmentation.
            ValueError: If its numbers do not fit.
        """
        if stage != "fit":
            return
        if not hasattr(self.datamodule, "tasks") or not hasattr(self.datamodule, "plain_train_dataloader"):
            raise TypeError(
                f"{type(self).__name__} learns a stream of sessions, got {type(self.datamodule).__name__}: use "
                "FewShotIncrementalDataModule and the callback TaskLoop."
            )
        check_sessions(self.tasks, self.num_classes, self.pretraining_epochs)

    def on_fit_start(self) -> None:
        """Check that the encoder of the keys, a moving average, is kept in a precision in which it moves.

        Raises:
            ValueError: If its parameters have half precision, or are packed.
        """
        if isinstance(self.contrast, QueueContrast):
            check_average(self.contrast.key_encoder, self.contrast.momentum, "key encoder")

    def on_task_start(self, task: Task) -> None:
        """Begin a session; a later one with the means of its shots."""
        self.session.fill_(task.index)
        self.seen[task.classes.start : task.classes.stop] = True
        rows = self.pseudo.rows(task.classes)
        if task.index == 0:
            self.pretraining.fill_(self.instances is not None)
            if self.instances is None:
                self.assign_prototypes(rows)
            return
        self.learn_means(rows)
        self.assign_prototypes(rows)
        if self.subnet is not None and task.index == 1:
            self.subnet.choose(self.tuned_parameters())

    def on_train_epoch_start(self) -> None:
        """Keep the encoder's statistics after the base session, and end the pretraining when its epochs are over."""
        if self.pretraining and self.current_epoch >= self.pretraining_epochs:
            self.pretraining.fill_(False)
            self.assign_prototypes(self.pseudo.rows(self.tasks[0].classes))
            self.trainer.strategy.setup_optimizers(self.trainer)
        self.task = self.tasks[int(self.session)]
        self.is_pretraining = bool(self.pretraining)
        self.train()

    def on_task_end(self, task: Task) -> None:
        """Make the rows of the session's classes the means of their images under the encoder as it is now."""
        tuned = "finetuning" in self.tricks and (self.options.refresh_means or self.prototypes is not None)
        if task.index == 0 or tuned:
            self.learn_means(self.pseudo.rows(task.classes))

    def train(self, mode: bool = True) -> "FewShotClassIncremental":
        """Train in the base session only: later ones keep dropout off and the statistics of batch normalisation."""
        super().train(mode and int(self.session) == 0)
        self.training = mode
        if not self.options.train_backbone:
            self.backbone.eval()
        return self

    # Class means ----------------------------------------------------------------------------------------------------

    def learn_means(self, rows: range) -> None:
        """Make some rows the means of the current session's images, shown as in evaluation, over all processes."""
        average_statistics(self.backbone, self.trainer.strategy)
        sums, counts = (self.trainer.strategy.reduce(part, reduce_op="sum") for part in self.gather_features())
        if counts[rows.start : rows.stop].eq(0).any() and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise ValueError("A class of this session has no training image, so there is no mean of it.")
        self.write_means(sums, counts)
        self.train()

    @torch.no_grad()
    def gather_features(self) -> tuple[Tensor, Tensor]:
        """Return sums and counts of this process's share of the session's images."""
        self.eval()
        with self.trainer.precision_plugin.val_step_context():
            return self.sum_features(plain_batches(self.trainer, self.datamodule))

    def sum_features(self, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return the sum of the embeddings of each pseudo-class, float64 (K m, D), and their number."""
        means = ClassMeans(*self.classifier.weight.shape)  # on the CPU: adding by index is not deterministic elsewhere
        for images, labels in batches:
            embeddings = self.embed(self.backbone(self.pseudo.expand_images(images))).float().cpu()
            if self.options.normalize_before_mean:
                embeddings = F.normalize(embeddings, dim=1)
            means.add(embeddings, self.pseudo.expand_labels(labels).cpu())
        return means.sum.to(self.device), means.count.to(self.device)

    @torch.no_grad()
    def write_means(self, sums: Tensor, counts: Tensor) -> None:
        """Make means of sums and write them over the rows of the classes that were counted."""
        found = counts > 0
        self.classifier.weight[found] = (sums[found] / counts[found, None]).to(self.classifier.weight)
        self.seen |= found.view(self.num_classes, -1).any(dim=1)

    def assign_prototypes(self, rows: range) -> None:
        """Give vectors to the classes of a session."""
        if self.prototypes is None:
            return
        means = None
        if self.options.assignment == "hungarian":
            self.learn_means(rows)
            means = self.classifier.weight[rows.start : rows.stop].detach()
        self.prototypes.assign(rows, means)

    # Training -------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of the part of the stream that this is."""
        images, labels = batch
        loss: Tensor
        if self.is_pretraining and self.instances is not None:
            loss = self.instances(self.backbone, images, self.global_rank, self.gather)
        elif self.task.index == 0:
            loss = self.base_loss(images, labels)
        elif "finetuning" in self.tricks:
            loss = self.classification_loss(self.backbone(self.pseudo.expand_images(images)), labels)
        else:  # the means are all there is to learn
            loss = self.classifier.weight.sum() * 0.0
        self.log("train/loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(images))
        if self.trainer.world_size > 1:  # DDP waits for the gradient of every parameter
            loss = loss + 0.0 * sum(p.sum() for p in self.parameters() if p.requires_grad)
        return loss

    def base_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of the base session: classification, and what the tricks add."""
        loss = self.classification_loss(self.backbone(self.pseudo.expand_images(images)), labels)
        if self.contrast is not None:
            contrast = self.contrast(self.backbone, images, labels, self.pseudo, self.gather)
            loss = loss + self.options.contrastive_weight * contrast
        if self.rotation is not None:
            loss = loss + self.options.rotation_weight * self.rotation.loss(self.backbone, images)
        return loss

    def classification_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of features of all pseudo-classes, over the classes seen so far; old rows are constants."""
        labels, embeddings = self.pseudo.expand_labels(labels), self.embed(features)
        rows = self.pseudo.rows(self.task.classes)
        if self.prototypes is None:
            targets, candidates = labels, self.classifier.rows(rows.stop, fixed=rows.start)
        elif self.options.prototype_loss == "dr":
            return dot_regression_loss(embeddings, self.prototypes.of(labels))
        elif self.options.prototype_negatives == "all":
            targets, candidates = self.prototypes.assignment[labels], self.prototypes.vectors
        else:
            targets, candidates = labels, self.prototypes.of(torch.arange(rows.stop, device=labels.device))
        return F.cross_entropy(cosine_logits(embeddings, candidates, self.options.scale), targets)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes; with DDP's mean over processes the gradient is that of one large batch."""
        if self.trainer.world_size == 1:
            return rows
        gathered: Any = self.all_gather(rows, sync_grads=rows.requires_grad)
        together: Tensor = gathered.flatten(0, 1)
        return together

    def tuned_parameters(self) -> dict[str, nn.Parameter]:
        """Return what finetuning moves beside the new rows, by name."""
        return tuned_parameters(self.backbone.model, self.neck, self.options.tuned_stage)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return optimizer and schedule of the session that the weights belong to.

        Not of the current epoch's: a checkpoint of the last epoch of a session holds that session's optimizer, and is
        loaded before the next one begins.
        """
        if int(self.session) > 0:
            return self.increment_optimizer()
        base, first = self.tasks[0], self.pretraining_epochs
        if self.pretraining and self.instances is not None:
            optimizer = self.instances.make_optimizer(self.backbone, self.options.pretraining_lr)
            schedule: LRScheduler = CosineWithWarmup(optimizer, first * base.steps_per_epoch, warmup_share=0.0)
        else:
            optimizer = self.optimizer(self.base_parameters())
            schedule = self.schedule(optimizer, (base.epochs - first) * base.steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def base_parameters(self) -> list[nn.Parameter]:
        """Return what the base session trains: all but the pretraining's projector and, with prototypes, the rows."""
        idle = set(self.instances.parameters() if self.instances is not None else ())
        if self.prototypes is not None:
            idle.add(self.classifier.weight)
        return [parameter for parameter in self.parameters() if parameter.requires_grad and parameter not in idle]

    def increment_optimizer(self) -> Optimizer:
        """Return the optimizer of a later session: of new rows and the last stage, or one that changes nothing."""
        if "finetuning" not in self.tricks:
            return torch.optim.SGD([self.classifier.weight], lr=0.0)
        encoder = list(self.tuned_parameters().values())
        if self.subnet is not None:
            encoder = [parameter for parameter, _ in self.subnet.tunable(self.tuned_parameters())]
        groups: list[Any] = [{"params": encoder, "lr": self.options.encoder_lr}]
        if self.prototypes is None:
            groups.append({"params": [self.classifier.weight]})
        return self.finetune_optimizer(groups)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and in a later session let nothing move but its rows and the sub-network."""
        with moving_only(self.moving()):
            super().optimizer_step(*args, **kwargs)

    def moving(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Return parameters of which only a part may move, with the mask of that part."""
        if self.task.index == 0 or "finetuning" not in self.tricks:
            return []
        rows, weight = self.pseudo.rows(self.task.classes), self.classifier.weight
        new = torch.zeros(len(weight), 1, dtype=torch.bool, device=weight.device)
        new[rows.start : rows.stop] = True
        return [(weight, new), *(self.subnet.tunable(self.tuned_parameters()) if self.subnet is not None else [])]

    # Checkpoints ----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note whether the encoder is quantised."""
        save_quantization(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint fits; in the base session finetuning and subnet may still be chosen anew.

        Raises:
            ValueError: If it has other tricks or another shape, belongs to another class, or to features of another
                precision.
        """
        state = checkpoint["state_dict"]
        saved = checkpoint.get("hyper_parameters", {})
        if "session" in state and int(state["session"]) == 0:
            check_same_backbone(self.options.train_backbone, saved.get("train_backbone", True))
        restore_quantization(self, checkpoint, exact=True)
        if "tricks" in saved and "session" in state:
            in_base_session = int(state["session"]) == 0
            check_same_tricks(self.tricks, saved["tricks"] or (), in_base_session)
            if in_base_session:
                restore_part(self, state, "subnet.")
                if self.subnet is None:
                    drop_part(state, "subnet.")
        check_state(self, state)
