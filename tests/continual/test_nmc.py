"""NMC against the worked examples of its specification, by hand and by brute force."""

from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import zoo
from zoo.nn import ClassMeans, linear_from_means

F64 = torch.float64


class Identity(nn.Module):
    num_features = 3

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return features, labels and queries of example E1: sines, so that nobody has to ship numbers."""
    i, j = torch.arange(8, dtype=F64).unsqueeze(1), torch.arange(3, dtype=F64)
    features = torch.sin(i + 2 * j) + 0.5 * (i.long() % 3 == j.long())
    queries = torch.cos(torch.arange(4, dtype=F64).unsqueeze(1) + 0.5 * j)
    return features, torch.arange(8) % 3, queries


UNIT_MEANS = [
    [0.3546681234, 0.2818727494, -0.1890754401],
    [0.1425863056, 0.4098835874, -0.1847215640],
    [0.0532958817, -0.0921128492, 0.4003096854],
]
LINEAR_SCORES = [
    [0.4552191302, 0.3381125757, 0.0913076152],
    [0.6056574077, 0.3110697320, -0.5925128004],
    [-0.5189875566, -0.5282311087, -0.6861035381],
    [-0.8913778403, -0.7574043955, -0.4734982864],
]
RAW_DISTANCES = [
    [1.0893107559, 1.1807894114, 1.3824470191],
    [0.3269414377, 0.6045650734, 1.1398306931],
    [1.6124694783, 1.6803311626, 1.7719208456],
    [1.9594207458, 1.9934531359, 1.7905103708],
]
COSINES = [
    [0.7211650437, 0.5738799546, 0.2904888872],
    [0.8791373832, 0.6296993291, -0.6474316511],
    [-0.2867762740, -0.2668562136, -0.6693697983],
    [-0.6735358220, -0.5412954111, -0.3475022005],
]


def fitted(rule: str) -> zoo.NMC:
    features, labels, _ = example()
    nmc = zoo.NMC(num_classes=3, backbone=Identity(), rule=rule)
    nmc.update(features, labels)
    return nmc


def test_means_of_unit_features() -> None:
    means = fitted("euclidean").means.means()
    torch.testing.assert_close(means, torch.tensor(UNIT_MEANS, dtype=F64), atol=1e-6, rtol=0)


def test_papers_rule_gives_one_minus_the_squared_distance() -> None:
    scores = fitted("euclidean")(example()[2])
    torch.testing.assert_close(scores, torch.tensor(LINEAR_SCORES), atol=1e-6, rtol=0)
    assert scores.argmax(1).tolist() == [0, 0, 0, 2]


def test_raw_rule_orders_as_the_distance() -> None:
    scores = fitted("euclidean_raw")(example()[2]).double()
    # |q|^2 - |q - m|^2 about some origin: differences within a row are those of the squared distances.
    expected = -(torch.tensor(RAW_DISTANCES, dtype=F64) ** 2)
    torch.testing.assert_close(scores - scores[:, :1], expected - expected[:, :1], atol=1e-5, rtol=0)


def test_cosine_rule_is_simplecil() -> None:
    scores = fitted("cosine")(example()[2])
    torch.testing.assert_close(scores, torch.tensor(COSINES), atol=1e-6, rtol=0)
    assert scores.argmax(1).tolist() == [0, 0, 1, 2]


def test_rules_disagree_where_they_should() -> None:
    means, query = torch.tensor([[2.0, 0.0], [0.6, 0.6]], dtype=F64), torch.tensor([[1.0, 0.4]], dtype=F64)
    weight, bias = linear_from_means(means, "euclidean_raw")
    assert (query @ weight.T + bias).argmax() == 1
    weight, bias = linear_from_means(means, "cosine")
    cosines = nn.functional.normalize(query) @ weight.T + bias
    torch.testing.assert_close(cosines, torch.tensor([[0.9284766909, 0.9191450300]], dtype=F64), atol=1e-9, rtol=0)


def test_large_offsets_do_not_lose_the_answer() -> None:
    nmc = zoo.NMC(num_classes=2, backbone=Identity(), rule="euclidean_raw")
    nmc.means = ClassMeans(2, 2)
    nmc.means.merge(torch.tensor([[1000.25, 1000.0], [1000.40, 1000.0]]), torch.tensor([1, 1]))
    scores = nmc.score(torch.tensor([[1000.30, 1000.0]]))
    assert scores.argmax() == 0
    torch.testing.assert_close(scores[0, 0] - scores[0, 1], torch.tensor(0.0075), atol=1e-3, rtol=0)


def test_unseen_class_never_wins() -> None:
    nmc = fitted("cosine")
    nmc.forget_class(1)
    scores = nmc(example()[2])
    assert scores[0].tolist() == pytest.approx([0.7211650437, -torch.inf, 0.2904888872], abs=1e-6)
    assert scores.softmax(1)[0, 1] == 0


def test_no_class_seen_is_an_error() -> None:
    with pytest.raises(ValueError, match="seen no class"):
        zoo.NMC(num_classes=3, backbone=Identity())(torch.rand(1, 3))


def test_order_and_split_of_the_data_do_not_matter() -> None:
    features, labels, _ = example()
    reference = fitted("euclidean").means
    for parts in ([[0, 1, 2], [3, 4], [5, 6, 7]], [[7, 3, 1], [0, 2, 4, 6], [5]]):
        nmc = zoo.NMC(num_classes=3, backbone=Identity())
        for part in parts:
            nmc.update(features[part], labels[part])
        torch.testing.assert_close(nmc.means.sum, reference.sum, atol=1e-12, rtol=0)
        assert nmc.means.count.tolist() == [3, 3, 2]


def test_sums_merge_and_means_do_not() -> None:
    features, labels, _ = example()
    ranks = [zoo.NMC(num_classes=3, backbone=Identity()) for _ in range(2)]
    for rank, nmc in enumerate(ranks):
        nmc.update(features[rank::2], labels[rank::2])
    mean_of_means = (ranks[0].means.means() + ranks[1].means.means()) / 2
    ranks[0].means.merge(ranks[1].means.sum, ranks[1].means.count)
    torch.testing.assert_close(ranks[0].means.means(), torch.tensor(UNIT_MEANS, dtype=F64), atol=1e-6, rtol=0)
    assert not torch.allclose(mean_of_means, ranks[0].means.means(), atol=1e-2)


@pytest.mark.parametrize("convert", ["bfloat16", "half", "float"])
def test_sum_stays_float64_under_conversion(convert: str) -> None:
    means = nn.Sequential(ClassMeans(1, 1))
    getattr(means, convert)()
    means.to(getattr(torch, {"bfloat16": "bfloat16", "half": "float16", "float": "float32"}[convert]))
    assert means[0].sum.dtype == F64
    for _ in range(3000):
        means[0].merge(torch.ones(1, 1), torch.ones(1, dtype=torch.int64))
    assert means[0].means().item() == 1.0
    assert means[0].sum.item() == 3000.0  # bfloat16 would have stopped at 256, float16 at 2048


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_sum_stays_float64_under_every_precision(precision, stream, trainer, pixels) -> None:
    data = stream()
    nmc = zoo.NMC(num_classes=6, backbone=pixels)
    trainer(precision=precision).fit(nmc, data)
    assert nmc.means.sum.dtype == F64
    assert nmc.means.count.tolist() == [7] * 6


def test_linear_layer_gives_the_same_scores() -> None:
    queries = example()[2].float()
    for rule in ("euclidean", "euclidean_raw", "cosine"):
        nmc = fitted(rule)
        inputs = queries if rule == "euclidean_raw" else nn.functional.normalize(queries)
        scores, linear = nmc(queries), nmc.to_linear()(inputs)
        torch.testing.assert_close(linear - linear[:, :1], scores - scores[:, :1], atol=1e-5, rtol=0)
    nmc.forget_class(2)
    assert torch.isneginf(nmc.to_linear()(inputs)[:, 2]).all()


def test_add_a_class_later() -> None:
    features, labels, queries = example()
    nmc = zoo.NMC(num_classes=2, backbone=Identity(), class_names=["a", "b"])
    nmc.update(features[labels < 2], labels[labels < 2])
    label = nmc.add_class("c")
    nmc.update(features[labels == 2], labels[labels == 2])
    assert label == 2
    torch.testing.assert_close(nmc(queries), torch.tensor(LINEAR_SCORES), atol=1e-6, rtol=0)
    assert nmc.predict_step(queries, 0)["class_name"] == ["a", "a", "a", "c"]


def test_forget_samples_equals_never_seen() -> None:
    features, labels, _ = example()
    nmc, without = fitted("euclidean"), zoo.NMC(num_classes=3, backbone=Identity())
    nmc.forget_samples(features[[0, 4]], labels[[0, 4]])
    rest = [1, 2, 3, 5, 6, 7]
    without.update(features[rest], labels[rest])
    torch.testing.assert_close(nmc.means.sum, without.means.sum, atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="class 2 has 2 samples, but 3"):
        nmc.forget_samples(features[[2, 5, 5]], labels[[2, 5, 5]])


def test_labels_that_are_no_class_are_refused() -> None:
    features, _, _ = example()
    nmc = fitted("euclidean")
    for label in (-1, 3):
        for refuse in (nmc.update, nmc.forget_samples):
            with pytest.raises(ValueError, match=f"Labels {label} to {label} do not fit num_classes=3"):
                refuse(features[:1], torch.tensor([label]))
        with pytest.raises(ValueError, match="do not fit num_classes=3"):
            nmc.forget_class(label)
    assert nmc.means.count.tolist() == [3, 3, 2]


def test_class_means_can_be_built_without_memory() -> None:
    with torch.device("meta"):
        means = ClassMeans(3, 2)
    means = means.to_empty(device="cpu")
    assert means.sum.dtype == F64
    assert means.sum.device.type == "cpu"


def test_stream_equals_all_data_at_once(stream, trainer, pixels) -> None:
    data = stream()
    nmc, joint = (zoo.NMC(num_classes=6, backbone=pixels) for _ in range(2))
    trainer().fit(nmc, data)
    for index in range(3):
        for image, label in data.train_set(index):
            joint.update(image.unsqueeze(0), torch.tensor([label]))
    torch.testing.assert_close(nmc.means.sum, joint.means.sum, atol=1e-10, rtol=0)
    assert torch.equal(nmc.means.count, joint.means.count)


def test_works_without_a_stream(trainer) -> None:
    features, labels, queries = example()
    loader = DataLoader(TensorDataset(features.float(), labels), batch_size=3)
    nmc = zoo.NMC(num_classes=3, backbone=Identity())
    L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False).fit(
        nmc, loader
    )
    torch.testing.assert_close(nmc(queries), torch.tensor(LINEAR_SCORES), atol=1e-6, rtol=0)


def test_two_passes_are_refused(stream, trainer, nmc) -> None:
    with pytest.raises(ValueError, match="one pass over a task, got epochs=2"):
        trainer().fit(nmc, stream(epochs_per_task=2))
    loader = DataLoader(TensorDataset(torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)))
    with pytest.raises(ValueError, match="got max_epochs=3"):
        L.Trainer(
            max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
        ).fit(nmc, loader)


def test_backbone_is_frozen_and_untouched(stream, trainer) -> None:
    nmc = zoo.NMC(num_classes=6, backbone="test_efficientnet", pretrained=False)
    before = {name: tensor.clone() for name, tensor in nmc.backbone.state_dict().items()}
    trainer().fit(nmc, stream())
    assert not nmc.backbone.training
    assert all(torch.equal(before[name], tensor) for name, tensor in nmc.backbone.state_dict().items())
    assert [name for name, parameter in nmc.named_parameters() if parameter.requires_grad] == ["dummy"]


def test_backbone_takes_arguments_of_timm() -> None:
    nmc = zoo.NMC(6, "test_vit", pretrained=False, backbone_args={"img_size": 8, "patch_size": 4})
    assert nmc.backbone.model.pos_embed.shape[1] == 5
    assert nmc.hparams["backbone_args"] == {"img_size": 8, "patch_size": 4}


def test_checkpoint_leaves_a_rebuildable_backbone_out(stream, trainer, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    torch.save(zoo.nn.create_backbone("test_efficientnet", pretrained=False).model.state_dict(), weights)
    nmc = zoo.NMC(num_classes=6, backbone="test_efficientnet", checkpoint_path=str(weights))
    data = stream()
    trainer().fit(nmc, data)
    path = tmp_path / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert sorted(saved) == ["dummy", "means.count", "means.sum"]
    images = torch.stack([data.train_set(0)[i][0] for i in range(4)])
    torch.testing.assert_close(zoo.NMC.load_from_checkpoint(path)(images), nmc.eval()(images), rtol=0, atol=0)


def test_checkpoint_keeps_random_weights(stream, trainer, tmp_path: Path) -> None:
    nmc = zoo.NMC(num_classes=6, backbone="test_efficientnet", pretrained=False)
    trainer().fit(nmc, stream())
    loaded = zoo.NMC.load_from_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded.eval()(images), nmc.eval()(images), rtol=0, atol=0)


def test_checkpoint_that_does_not_fit_is_refused(stream, trainer, nmc, tmp_path: Path) -> None:
    trainer().fit(nmc, stream())
    path = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match=r"means.sum has shape \(6, 192\) in the file and \(6, 3\) here"):
        zoo.NMC.load_from_checkpoint(path, backbone=Identity())
    with pytest.raises(ValueError, match="number of classes"):
        zoo.NMC.load_from_checkpoint(path, backbone=nmc.backbone, num_classes=7)
    other = torch.load(path, weights_only=True)
    other["state_dict"] = {"head.weight": torch.zeros(1)}
    torch.save(other, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="another class"):
        zoo.NMC.load_from_checkpoint(tmp_path / "other.ckpt", backbone=nmc.backbone)


def test_bad_batches_are_refused(nmc, trainer) -> None:
    def fit(images: torch.Tensor, labels: torch.Tensor) -> None:
        loader = DataLoader(TensorDataset(images, labels), batch_size=4)
        L.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
        ).fit(nmc, loader)

    images = torch.rand(4, 3, 8, 8)
    with pytest.raises(ValueError, match="Labels 0 to 6 do not fit num_classes=6"):
        fit(images, torch.tensor([0, 1, 6, 2]))
    images[2, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite: look at the images"):
        fit(images, torch.arange(4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"num_classes": 2, "rule": "manhattan"}, "rule='manhattan'"),
        ({"num_classes": 2, "backbone": "resnet181"}, "Did you mean resnet18"),
        ({"num_classes": 2, "backbone": "resnet18.a1_in2k"}, "Did you mean resnet18.a1_in1k"),
        ({"num_classes": 2, "backbone": "resnet18", "pretrained": "offline"}, "tf_efficientnet_lite0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        zoo.NMC(**arguments)
