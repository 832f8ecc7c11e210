"""Each trick by itself, against numbers that were worked out apart from this code (float64)."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zoo.fewshot.contrastive import (
    BatchContrast,
    Projector,
    QueueContrast,
    StrongViews,
    ema_update,
    enqueue,
    queue_contrastive_loss,
    supervised_contrastive_loss,
)
from zoo.fewshot.cosine_classifier import CosineClassifier, cosine_logits
from zoo.fewshot.finetuning import last_stage, moving_only
from zoo.fewshot.pretraining import InstanceContrast
from zoo.fewshot.prototypes import (
    AssignedPrototypes,
    Neck,
    dot_regression_loss,
    frame_energy,
    match,
    push_apart,
    simplex_from_basis,
    simplex_prototypes,
)
from zoo.fewshot.pseudo_classes import TRANSFORMS, PseudoClasses
from zoo.fewshot.rotation import RotationHead
from zoo.fewshot.subnet import Subnet, minor_mask
from zoo.fewshot.tricks import TRICKS, check_tricks, in_order
from zoo.nn import create_backbone


def grid(rows: int, columns: int, formula) -> torch.Tensor:
    """A matrix of a formula of row i and column j."""
    return torch.tensor([[formula(i, j) for j in range(columns)] for i in range(rows)], dtype=torch.float64)


def double(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def unit(x: torch.Tensor) -> torch.Tensor:
    return F.normalize(x, dim=1)


def sines(rows: int, columns: int) -> torch.Tensor:
    return grid(rows, columns, lambda i, j: math.sin(i + 2 * j))


VIEWS = torch.cat([unit(sines(4, 3)), unit(grid(4, 3, lambda i, j: math.cos(i + j)))])


# S1 ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "temperature", "expected"),
    [([0, 0, 1, 2], 0.07, 2.957251925063), ([0, 0, 1, 2], 0.5, 1.511568977418), ([0, 1, 2, 3], 0.5, 1.395058385429)],
)
def test_contrastive_loss_of_two_views(labels, temperature, expected) -> None:
    loss = supervised_contrastive_loss(VIEWS, torch.tensor(labels).repeat(2), temperature)
    assert float(loss) == pytest.approx(expected, rel=1e-8)


def test_anchors_without_a_positive_are_left_out() -> None:
    loss = float(supervised_contrastive_loss(VIEWS[:4], torch.tensor([0, 0, 1, 2]), 0.5))
    assert loss == pytest.approx(0.490906036375, rel=1e-8)
    assert loss * 2 / 4 == pytest.approx(0.245453018187, rel=1e-8)  # counted as zero, as other code does


def test_no_positive_at_all_gives_a_gradient_of_zero() -> None:
    z = VIEWS[:4].clone().requires_grad_()
    loss = supervised_contrastive_loss(z, torch.arange(4))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not z.grad.any()


def test_contrastive_loss_does_not_overflow_in_half_precision() -> None:
    z = torch.eye(4).repeat(2, 1).half()
    loss = supervised_contrastive_loss(z, torch.arange(4).repeat(2), 0.05)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(math.log(1 + 6 * math.exp(-20)), abs=1e-6)


@pytest.mark.parametrize(
    ("bank_labels", "temperature", "expected"),
    [
        ([0, 1, 0, 2, -1], 0.5, 1.051137898676),
        ([0, 1, 0, 2, -1], 0.07, 3.256670007544),
        ([-1] * 5, 0.5, 1.154288774569),
    ],
)
def test_queue_loss(bank_labels, temperature, expected) -> None:
    queries, keys = unit(sines(2, 3)), unit(grid(2, 3, lambda i, j: math.cos(i + j)))
    bank = unit(grid(5, 3, lambda i, j: math.sin(1 + i - j)))
    loss = queue_contrastive_loss(queries, keys, torch.tensor([0, 1]), bank, torch.tensor(bank_labels), temperature)
    assert float(loss) == pytest.approx(expected, rel=1e-8)


def test_queue_is_a_ring() -> None:
    keys = torch.arange(3.0).unsqueeze(1)
    bank, labels, pointer = enqueue(
        torch.full((5, 1), -1.0), torch.full((5,), -1), torch.tensor(3), keys, torch.tensor([7, 8, 9])
    )
    assert labels.tolist() == [9, -1, -1, 7, 8]
    assert bank.flatten().tolist() == [2, -1, -1, 0, 1]
    assert int(pointer) == 1
    bank, labels, pointer = enqueue(bank, labels, pointer, torch.zeros(7, 1), torch.arange(7))
    assert sorted(labels.tolist()) == [2, 3, 4, 5, 6]  # more than fit in: the last ones stay


def test_key_encoder_moves_slowly() -> None:
    slow, fast = (nn.Linear(2, 1, bias=False).double() for _ in range(2))
    with torch.no_grad():
        slow.weight.copy_(torch.tensor([[1.0, -2.0]]))
        fast.weight.copy_(torch.tensor([[0.5, 1.0]]))
    for _ in range(3):
        ema_update(slow, fast, 0.995)
    torch.testing.assert_close(slow.weight.data, double([[0.9925374375, -1.955224625]]), rtol=1e-8, atol=0)


def test_projections_have_unit_length() -> None:
    projections = Projector(6, 4)(torch.randn(5, 6))
    torch.testing.assert_close(projections.norm(dim=1), torch.ones(5))


def test_strong_views_differ_by_image_and_stay_in_range() -> None:
    images = torch.rand(1, 3, 8, 8).repeat(4, 1, 1, 1)
    views = StrongViews((0.3, 0.5))(images)
    assert views.shape == images.shape
    assert views.min() >= 0
    assert views.max() <= 1
    assert not torch.equal(views[0], views[1])
    assert StrongViews()(images, (0.2, 0.7), 0.5).shape == (4, 3, 4, 4)
    colours = torch.rand(20, 3, 1, 4)  # without a flip the left half stays left of the right one
    colours[..., :2] = 0
    kept = StrongViews((1.0, 1.0), flip=False)(colours)
    assert (kept[..., 0].mean(dim=1) <= kept[..., -1].mean(dim=1)).all()


class Flat(nn.Module):
    """An encoder whose features are the pixels."""

    num_features = 12

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return images.flatten(1) * self.scale


def test_views_of_a_batch_carry_the_labels_of_their_transform(monkeypatch) -> None:
    pseudo, images, labels = PseudoClasses("rotation2"), torch.rand(3, 3, 2, 2), torch.tensor([1, 0, 1])
    monkeypatch.setattr(StrongViews, "__call__", lambda self, images, *args: images)
    contrast = BatchContrast(12, 5, 0.5, StrongViews(), num_views=2)
    loss = contrast(Flat(), images, labels, pseudo, lambda rows: rows)
    turned = torch.stack([images, images.flip(2, 3)], dim=1).flatten(0, 1)  # image by image, both turns of it
    z = contrast.projector(turned.flatten(1)).repeat(2, 1)
    expected = supervised_contrastive_loss(z, torch.tensor([2, 3, 0, 1, 2, 3]).repeat(2), 0.5)
    torch.testing.assert_close(loss, expected)


def test_queue_takes_keys_in_and_compares_with_them_next_time(monkeypatch) -> None:
    monkeypatch.setattr(StrongViews, "__call__", lambda self, images, *args: images)
    encoder = Flat()
    contrast = QueueContrast(encoder, 5, 0.5, StrongViews(), queue_size=8, momentum=0.9)
    assert all(not parameter.requires_grad for parameter in contrast.key_encoder.parameters())
    images, labels = torch.rand(3, 3, 2, 2), torch.tensor([1, 0, 1])
    before = contrast.keys.clone()
    loss = contrast(encoder, images, labels, PseudoClasses("none"), lambda rows: rows)
    z = contrast.projector(images.flatten(1))
    expected = queue_contrastive_loss(z, z, labels, before, torch.full((8,), -1), 0.5)  # the copy is still the encoder
    torch.testing.assert_close(loss, expected)
    assert contrast.labels.tolist() == [1, 0, 1, -1, -1, -1, -1, -1]
    torch.testing.assert_close(contrast.keys[:3], z.detach())
    loss.backward()
    assert encoder.scale.grad is not None
    with torch.no_grad():
        encoder.scale += 1
    contrast(encoder, images, labels, PseudoClasses("none"), lambda rows: rows)
    assert float(contrast.key_encoder[0].scale) == pytest.approx(1.1)
    assert int(contrast.pointer) == 6


# S2 ------------------------------------------------------------------------------------------------------------------


def basis_of_example() -> torch.Tensor:
    q, r = torch.linalg.qr(grid(4, 3, lambda i, j: math.sin(1 + i + 2 * j) + (i == j)))
    return q * r.diagonal().sign()


SIMPLEX = double([
    [0.8047185228, -0.3114128145, -0.4933057083], [-0.0622514604, -0.4021523615, 0.4644038219],
    [0.4319322673, -0.8341398853, 0.4022076180], [-0.4024765475, -0.2133217965, 0.6157983440],
])  # fmt: skip


def test_simplex_of_unit_vectors() -> None:
    e = simplex_from_basis(torch.eye(5, 4, dtype=torch.float64))
    expected = torch.full((4, 4), -0.2886751346, dtype=torch.float64).fill_diagonal_(0.8660254038)
    torch.testing.assert_close(e[:4], expected, rtol=1e-8, atol=1e-9)
    assert not e[4].any()
    gram = torch.full((4, 4), -1 / 3, dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(e.T @ e, gram)


def test_simplex_of_a_basis_and_its_losses() -> None:
    e = simplex_from_basis(basis_of_example())
    torch.testing.assert_close(e, SIMPLEX, rtol=1e-8, atol=1e-9)
    f = grid(2, 4, lambda i, j: math.cos(i + 2 * j)).requires_grad_()
    logits = cosine_logits(f, e.T, 16.0)
    expected = [[1.6305175749, 1.9780634230, -3.6085809979], [3.6424480600, -1.9344712551, -1.7079768049]]
    torch.testing.assert_close(logits, double(expected), rtol=1e-8, atol=0)
    labels = torch.tensor([0, 2])
    assert F.cross_entropy(logits, labels).item() == pytest.approx(3.121528011335, rel=1e-8)
    loss = dot_regression_loss(unit(f), e.T[labels], weight=1.0)
    assert loss.item() == pytest.approx(0.507865691103, rel=1e-8)
    assert dot_regression_loss(unit(f), e.T[labels]).item() == pytest.approx(5.078656911033, rel=1e-8)
    gradient = [
        [-0.2093843021, 0.0100511822, -0.1339832933, 0.1312160422],
        [0.1803490061, -0.1549798240, -0.1693152068, -0.2690581225],
    ]
    (found,) = torch.autograd.grad(loss, f)
    torch.testing.assert_close(found, double(gradient), rtol=1e-8, atol=1e-9)


def test_drawn_simplex_is_one_and_follows_from_its_seed() -> None:
    vectors = simplex_prototypes(6, 8)
    gram = torch.full((6, 6), -1 / 5).fill_diagonal_(1)
    torch.testing.assert_close(vectors @ vectors.T, gram, atol=1e-6, rtol=0)
    torch.testing.assert_close(simplex_prototypes(6, 8), vectors)
    assert not torch.allclose(simplex_prototypes(6, 8, seed=1), vectors)
    with pytest.raises(ValueError, match=r"A simplex of 9 vectors,.* as many dimensions, got 8"):
        simplex_prototypes(9, 8)


def test_pushing_apart() -> None:
    t = unit(grid(3, 2, lambda i, j: math.sin(1 + 2 * i + j)))
    assert float(frame_energy(t)) == pytest.approx(1.409324577689, rel=1e-8)
    moved = push_apart(t, steps=1)
    expected = [[0.6518476694, 0.7583499297], [0.2768557891, -0.9609114798], [-0.9885953833, -0.1505960426]]
    torch.testing.assert_close(moved, double(expected), rtol=1e-8, atol=1e-9)
    assert float(frame_energy(moved)) == pytest.approx(1.385785806959, rel=1e-8)
    best = frame_energy(push_apart(t, steps=500))
    assert float(best) == pytest.approx(math.log(math.e + 2 * math.exp(-0.5)), rel=1e-8)


def test_matching_avoids_a_clash() -> None:
    means = unit(grid(3, 4, lambda i, j: math.cos(1 + i + 2 * j)))
    prototypes = simplex_from_basis(torch.eye(4, dtype=torch.float64)).T
    assert (means @ prototypes.T).argmax(dim=1).tolist() == [3, 2, 2]
    chosen = match(means, prototypes)
    assert chosen.tolist() == [3, 2, 1]
    assert float((means * prototypes[chosen]).sum()) == pytest.approx(1.825191964968, rel=1e-8)


def test_classes_take_free_vectors_only() -> None:
    prototypes = AssignedPrototypes(6, 8, "etf")
    prototypes.assign(range(2))
    assert prototypes.assignment.tolist() == [0, 1, -1, -1, -1, -1]
    means = prototypes.vectors[[1, 5]]  # the first is near to a vector that is taken
    prototypes.assign(range(2, 4), means)
    assert prototypes.assignment[3] == 5
    assert prototypes.assignment[2] in (2, 3, 4)
    prototypes.assign(range(4, 6))
    assert sorted(prototypes.assignment.tolist()) == list(range(6))
    torch.testing.assert_close(prototypes.of(torch.tensor([3])), prototypes.vectors[[5]])


def test_more_classes_than_dimensions_take_optimized_vectors() -> None:
    with pytest.raises(ValueError, match="prototype_kind='optimized'"):
        AssignedPrototypes(7, 4, "etf")
    vectors = AssignedPrototypes(7, 4, "optimized").vectors
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(7))
    assert (vectors @ vectors.T).fill_diagonal_(-1).max() < 0.4


def test_neck_is_linear_plus_layers() -> None:
    neck = Neck(6, 5)
    x = torch.randn(3, 6)
    torch.testing.assert_close(neck(x), neck.layers(x) + x @ neck.skip.weight.T)
    assert [layer.out_features for layer in neck.layers if isinstance(layer, nn.Linear)] == [12, 12, 5]


# S3 ------------------------------------------------------------------------------------------------------------------


def test_rotations_turn_counter_clockwise() -> None:
    image = torch.tensor([[0, 1], [2, 3]]).expand(1, 3, 2, 2)
    turned = PseudoClasses("rotation").expand_images(image)[:, 0].tolist()
    assert turned == [[[0, 1], [2, 3]], [[1, 3], [0, 2]], [[3, 2], [1, 0]], [[2, 0], [3, 1]]]


def test_labels_are_interleaved() -> None:
    assert PseudoClasses("rotation2").expand_labels(torch.tensor([3, 0])).tolist() == [6, 7, 0, 1]
    assert PseudoClasses("rotation2").rows(range(2, 4)) == range(4, 8)


def test_scores_compare_equal_transforms_only() -> None:
    scores = PseudoClasses("rotation2").aggregate(grid(4, 6, lambda i, j: math.sin(1 + i + 3 * j)))
    expected = [[-0.0587266449, -0.1715018040, -0.2706152275], [0.3990533034, 0.4161427610, 0.4000825249]]
    torch.testing.assert_close(scores, double(expected), rtol=1e-8, atol=1e-9)
    assert scores.argmax(dim=1).tolist() == [0, 1]


def test_transforms_of_every_name() -> None:
    sizes = {"none": 1, "rotation2": 2, "rotation": 4, "color_perm3": 3, "color_perm": 6, "rot_color_perm6": 6}
    sizes |= {"rot_color_perm12": 12, "rot_color_perm24": 24}
    image = torch.rand(1, 3, 2, 2)
    assert sizes.keys() == TRANSFORMS.keys()
    for name, size in sizes.items():
        views = PseudoClasses(name).expand_images(image)
        assert len(views) == size
        assert len({tuple(view.flatten().tolist()) for view in views}) == size
    cycled = PseudoClasses("rot_color_perm6").expand_images(image)
    torch.testing.assert_close(cycled[1], image[0, [1, 2, 0]])  # GBR
    torch.testing.assert_close(cycled[3], torch.rot90(image[0], 2, dims=(1, 2)))  # turns are the outer loop


def test_quarter_turns_need_square_images() -> None:
    assert PseudoClasses("rotation2").expand_images(torch.rand(1, 3, 2, 4)).shape == (2, 3, 2, 4)
    with pytest.raises(ValueError, match="2 x 4 pixels cannot be turned by 90 degrees"):
        PseudoClasses("rotation").expand_images(torch.rand(1, 3, 2, 4))
    with pytest.raises(ValueError, match="pseudo_classes='mixup' must be one of none, rotation2"):
        PseudoClasses("mixup")


# A1, A2 --------------------------------------------------------------------------------------------------------------

WEIGHTS = torch.tensor([0.3, -0.1, 0.05, 0.8, -0.6, 0.2, -0.4, 0.7, 0.15, -0.9], dtype=torch.float64)


@pytest.mark.parametrize(
    ("fraction", "minor"), [(0.3, [1, 2, 8]), (0.5, [1, 2, 5, 8]), (0.9, [0, 1, 2, 4, 5, 6, 7, 8])]
)
def test_smallest_weights_are_minor(fraction, minor) -> None:
    assert minor_mask(WEIGHTS.abs(), fraction).nonzero().flatten().tolist() == minor


def test_half_is_rounded_to_the_even_number_and_ties_stay() -> None:
    assert minor_mask(torch.arange(6.0), 0.5).sum() == 2  # the threshold is the third
    assert minor_mask(torch.arange(8.0), 0.5).sum() == 4  # the fifth
    assert minor_mask(torch.tensor([1.0, 1.0, 1.0, 2.0]), 0.7).sum() == 0


def test_frozen_entries_are_bit_equal_whatever_the_optimizer_does() -> None:
    weight = nn.Parameter(WEIGHTS.clone())
    mask = minor_mask(WEIGHTS.abs(), 0.3)
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(2):
        weight.grad = torch.sin(1 + torch.arange(10, dtype=torch.float64))
        with moving_only([(weight, mask)]):
            optimizer.step()
    expected = WEIGHTS.clone()
    expected[[1, 2, 8]] = double([-0.3636772075423136, 0.009068653387678805, 0.030465950247316784])
    torch.testing.assert_close(weight.data, expected, rtol=1e-12, atol=0)
    assert torch.equal(weight.data[~mask], WEIGHTS[~mask])


def test_subnet_of_the_last_stage() -> None:
    stage = last_stage(create_backbone("resnet18", pretrained=False).model)
    weights = dict(stage.named_parameters())
    subnet = Subnet(weights, 0.3, "magnitude", "minor")
    assert subnet.names == [name for name in weights if "conv" in name and "downsample" not in name]
    assert not any(mask.any() for _, mask in subnet.tunable(weights))
    subnet.choose(weights)
    for parameter, mask in subnet.tunable(weights):
        assert mask.float().mean() == pytest.approx(0.3, abs=0.01)
        assert parameter[mask].abs().max() < parameter[~mask].abs().min()
    major = Subnet(weights, 0.3, "magnitude", "major")
    major.choose(weights)
    random = Subnet(weights, 0.3, "random", "minor")
    random.choose(weights)
    again = Subnet(weights, 0.3, "random", "minor")
    again.choose(weights)
    for name in subnet.state_dict():
        assert torch.equal(major.state_dict()[name], ~subnet.state_dict()[name])
        assert torch.equal(random.state_dict()[name], again.state_dict()[name])
        assert random.state_dict()[name].float().mean() == pytest.approx(0.3, abs=0.01)
        assert not torch.equal(random.state_dict()[name], subnet.state_dict()[name])
    with pytest.raises(ValueError, match="subnet_fraction=0 must be"):
        Subnet(weights, 0, "magnitude", "minor")


@pytest.mark.parametrize(
    ("model", "name"), [("cifar_resnet20", "layer3"), ("cifar_resnet18", "layer4"), ("test_vit", "blocks.5")]
)
def test_last_stage_of_a_network(model, name) -> None:
    network = create_backbone(model, pretrained=False).model
    assert last_stage(network) is network.get_submodule(name)
    assert last_stage(network, name) is network.get_submodule(name)
    with pytest.raises(ValueError, match=r"tuned_stage='nowhere' is no part of the backbone; it has "):
        last_stage(network, "nowhere")


def test_last_convolution_where_there_are_no_stages() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Flatten())
    assert last_stage(network) is network[2]
    with pytest.raises(ValueError, match="neither stages nor convolutions"):
        last_stage(nn.Linear(2, 2))


# T1, T2, T3 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "features", "weights"), [("cifar_resnet20", 64, 0.27e6), ("cifar_resnet18", 512, 11.17e6)]
)
def test_encoders_for_small_images(name, features, weights) -> None:
    network = create_backbone(name, pretrained=False)
    assert network.num_features == features
    assert sum(p.numel() for p in network.model.parameters()) == pytest.approx(weights, rel=0.02)
    assert network.model.forward_features(torch.rand(1, 3, 32, 32)).shape[-1] == (8 if features == 64 else 4)
    torch.testing.assert_close(network.mean.flatten(), torch.tensor([0.5071, 0.4867, 0.4408]))


def test_pretraining_tells_images_apart_also_those_of_other_processes(monkeypatch) -> None:
    monkeypatch.setattr(StrongViews, "__call__", lambda self, images, *args: images)
    instances = InstanceContrast(12, 5, 0.5, StrongViews())
    ids = []
    images = torch.rand(3, 3, 2, 2)
    loss = instances(Flat(), images, 2, lambda rows: ids.append(rows) or rows)
    assert ids[1].tolist() == [6, 7, 8, 6, 7, 8]
    z = instances.projector(images.flatten(1)).repeat(2, 1)
    torch.testing.assert_close(loss, supervised_contrastive_loss(z, torch.arange(3).repeat(2), 0.5))


def test_rotation_loss_of_given_logits() -> None:
    logits = grid(4, 4, lambda i, j: math.sin(1 + i + j))
    rotation = float(F.cross_entropy(logits, torch.arange(4)))
    assert rotation == pytest.approx(1.239783283451, rel=1e-8)
    assert 3.121528011335 + 1 * 2.957251925063 + 0.5 * rotation == pytest.approx(6.698671578124, rel=1e-8)


def test_rotation_head_sees_four_turns_of_half_a_batch() -> None:
    head, images = RotationHead(12), torch.rand(5, 3, 2, 2)
    seen = []

    class Watch(Flat):
        def forward(self, images):
            seen.append(images)
            return super().forward(images)

    loss = head.loss(Watch(), images)
    assert seen[0].shape[0] == 8
    torch.testing.assert_close(seen[0][2:4], torch.rot90(images[:2], 1, dims=(2, 3)))
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    torch.testing.assert_close(loss, F.cross_entropy(head(seen[0].flatten(1)), labels))


# The classifier and the list -----------------------------------------------------------------------------------------


def test_cosines_to_means_of_raw_and_of_unit_features() -> None:
    features = grid(4, 3, lambda i, j: math.sin(i + 2 * j) + 1)
    query = double([[1, 0.5, -0.2]])
    means = features.view(2, 2, 3).mean(dim=1)
    expected = [[1.4207354924, 1.5252087174, 0.1421366150], [1.5252087174, 0.1421366150, 1.1887855503]]
    torch.testing.assert_close(means, double(expected), rtol=1e-8, atol=1e-9)
    for rows, values in (
        (means, [14.529977722676, 9.869972750440]),
        (unit(features).view(2, 2, 3).mean(dim=1), [14.530848097462, 9.830672934457]),
    ):
        found = cosine_logits(query, rows, 16.0)[0]
        torch.testing.assert_close(found, double(values), rtol=1e-8, atol=0)


def test_fixed_rows_get_no_gradient() -> None:
    classifier = CosineClassifier(4, 3)
    cosine_logits(torch.randn(2, 3), classifier.rows(3, fixed=2), 16.0).sum().backward()
    assert not classifier.weight.grad[[0, 1, 3]].any()
    assert classifier.weight.grad[2].any()


def test_tricks_are_eight_in_the_order_of_the_paper() -> None:
    assert len(TRICKS) == 8
    assert in_order({"rotation", "finetuning", "contrastive"}) == ["contrastive", "finetuning", "rotation"]
    with pytest.raises(ValueError, match="tricks has magic; there are contrastive, prototypes"):
        check_tricks(["magic"])
    with pytest.raises(ValueError, match="add finetuning to tricks"):
        check_tricks(["subnet"])
