"""Handwritten digits that come with scikit-learn."""

from collections.abc import Sequence

import torch

from zoo.datamodules.sources.images import TensorImages
from zoo.datamodules.sources.source import Source

TEST_PER_CLASS = 36  # a fifth of the 174 to 183 images of a class


class Digits(Source):
    """1797 handwritten digits of 8 x 8 pixels, embedded in scikit-learn: real images without a download.

    The split is fixed: the last 36 images of each class, in stored order, are the test set (360 images), the others the
    training set (1437 images, 138 to 147 of a class). Images of one writer stand together in the file, so this test
    set holds mostly handwriting that training has not seen, which a random split would not.

    Images are uint8 of shape (1, 8, 8); the 17 grey levels 0..16 of the file are scaled to 0..255.

    Source:
        Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998 (its
        test file), https://doi.org/10.24432/C50P49.
    """

    @property
    def classes(self) -> Sequence[str]:
        """The ten digits."""
        return [str(digit) for digit in range(10)]

    def train(self) -> TensorImages:
        """Return the training images."""
        return self._images(test=False)

    def test(self) -> TensorImages:
        """Return the test images, 36 of each class."""
        return self._images(test=True)

    def _images(self, test: bool) -> TensorImages:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = (torch.from_numpy(digits.images) * 255 / 16).round().to(torch.uint8).unsqueeze(1)
        targets = torch.from_numpy(digits.target).long()
        is_test = torch.zeros(len(targets), dtype=torch.bool)
        for digit in range(10):
            is_test[(targets == digit).nonzero().flatten()[-TEST_PER_CLASS:]] = True
        chosen = is_test if test else ~is_test
        return TensorImages(f"the {'test' if test else 'training'} set of Digits", images[chosen], targets[chosen])
