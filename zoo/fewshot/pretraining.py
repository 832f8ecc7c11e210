"""Trick T2: before the base session the encoder learns from its images without their labels."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from zoo.fewshot.contrastive import Gather, Projector, StrongViews, supervised_contrastive_loss


class InstanceContrast(nn.Module):
    """Two strong views of an image draw together, those of all other images apart (NT-Xent).

    Args:
        num_features: Length of a feature vector.
        size: Length of a projection.
        temperature: Of the softmax, positive.
        views: Draws a view of each image.

    Source:
        Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020 (SimCLR).
    """

    def __init__(self, num_features: int, size: int, temperature: float, views: StrongViews) -> None:
        super().__init__()
        self.projector = Projector(num_features, size)
        self.temperature = temperature
        self.views = views

    def forward(self, backbone: nn.Module, images: Tensor, rank: int, gather: Gather) -> Tensor:
        """Return the loss of a batch; every image is a class of its own, on all processes."""
        views = torch.cat([self.views(images), self.views(images)])
        ids = rank * len(images) + torch.arange(len(images), device=images.device)
        projections = self.projector(backbone(views))
        return supervised_contrastive_loss(gather(projections), gather(ids.repeat(2)), self.temperature)

    def make_optimizer(self, backbone: nn.Module, lr: float) -> Optimizer:
        """Return the optimizer of the pretraining, of the encoder and the projector.

        Args:
            backbone: The encoder.
            lr: Learning rate.
        """
        parameters = [*backbone.parameters(), *self.projector.parameters()]
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4)
