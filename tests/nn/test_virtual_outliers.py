"""The regulariser against its worked examples, and a chunked search against brute force."""

import math

import pytest
import torch

from zoo.nn import VirtualOutliers, energy, synthesize_outliers
from zoo.nn.virtual_outliers import distance_to_neighbor

F64 = torch.float64
SAMPLES = torch.tensor([[20, 1, 0], [8, 7, 6], [14, 14, 0], [15.5, 0, 0]], dtype=F64)
OUTLIERS = torch.tensor([[1, 2, 3], [5, 0, 0], [-1, -2, -3]], dtype=F64)


def close(actual, expected) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=F64), atol=1e-9, rtol=0)


def test_energies() -> None:
    close(energy(SAMPLES), [-20.0000000077, -8.4076059644, -14.6931475963, -15.5000003711])
    close(energy(OUTLIERS), [-3.4076059644, -5.0133859017, 0.5923940356])
    assert energy(SAMPLES.bfloat16()).dtype == torch.float32


def test_hinges_and_their_gradients() -> None:
    samples, outliers = SAMPLES.clone().requires_grad_(), OUTLIERS.clone().requires_grad_()
    parts = VirtualOutliers()(samples, outliers)
    close(parts["sample_hinge"].detach(), 1.534868308594)
    close(parts["outlier_hinge"].detach(), 0.532152404282)
    close(parts["loss"].detach(), 0.206702071288)
    assert parts["active_samples"] == 0.5
    assert parts["active_outliers"].item() == pytest.approx(2 / 3)
    parts["loss"].backward()
    close(
        samples.grad,
        [
            [0, 0, 0],
            [-1.6631023894e-2, -6.1182117764e-3, -2.2507643293e-3],
            [-3.8356534512e-3, -3.8356534512e-3, -3.1894560012e-9],
            [0, 0, 0],
        ],
    )
    close(
        outliers.grad,
        [[1.2232333e-3, 3.3250928e-3, 9.0385394e-3], [3.28901097e-2, 2.216118e-4, 2.216118e-4], [0, 0, 0]],
    )


def test_squared_penalty() -> None:
    close(VirtualOutliers(penalty="squared")(SAMPLES, OUTLIERS)["loss"], 1.229507618325)


def test_each_half_can_be_left_out() -> None:
    only_samples = VirtualOutliers(outlier_energy=-math.inf)(SAMPLES, OUTLIERS.clone().requires_grad_())
    close(only_samples["loss"].detach(), 0.1 * 1.534868308594)
    assert VirtualOutliers(weight=0)(SAMPLES, OUTLIERS)["loss"] == 0


@pytest.mark.parametrize(("num_classes", "active"), [(5, 0.0), (10, 0.0), (20, 0.0), (40, 1.0)])
def test_outlier_hinge_of_zero_logits_is_idle_for_few_classes(num_classes: int, active: float) -> None:
    """Outliers around the origin have logits near zero: nothing is learned from them with 20 classes or less."""
    parts = VirtualOutliers()(torch.zeros(1, num_classes), torch.zeros(4, num_classes))
    assert parts["active_outliers"] == active
    assert parts["outlier_energy"].item() == pytest.approx(-math.log(num_classes))


def example() -> tuple[torch.Tensor, torch.Tensor]:
    i, j = torch.arange(7, dtype=F64).unsqueeze(1), torch.arange(3, dtype=F64)
    features = torch.sin(i + 2 * j) + 2 * (i.long() % 2 == j.long())
    return features, 0.5 * torch.cos(1.7 * torch.arange(4, dtype=F64).unsqueeze(1) + j)


RAW = [
    1.4295791697,
    0.7102092796,
    2.0327367770,
    2.4621000162,
    7.2923675307,
    6.6401687737,
    3.6144837176,
    5.5887440569,
]
UNIT = [
    0.3145801362,
    0.3085186308,
    1.0844401759,
    0.7761927240,
    0.3309072801,
    0.6090928861,
    0.4175021398,
    0.3651145920,
]


def test_distance_of_each_sample_to_its_second_neighbour() -> None:
    samples = torch.nn.functional.normalize(example()[0])
    found = distance_to_neighbor(samples, samples, 2)
    close(found, [0.0123674495, 0.4060665280, 0.4770993139, 0.3594044535, 0.5414550457, 0.3594044535, 0.0123674495])


@pytest.mark.parametrize(("normalize", "kept", "scores"), [(False, [4, 5, 7], RAW), (True, [2, 5, 3], UNIT)])
def test_outliers_around_the_boundary(normalize: bool, kept: list[int], scores: list[float]) -> None:
    features, noise = example()
    candidates = torch.cat([features[4] + noise, features[2] + noise])
    close(candidates[0], [1.7431975047, -0.0092643453, 0.7812848283])
    close(candidates[4], [3.4092974268, -0.4866513424, -0.4874889165])
    queries = torch.nn.functional.normalize(candidates) if normalize else candidates
    close(distance_to_neighbor(queries, torch.nn.functional.normalize(features), 2), scores)
    outliers, sources = synthesize_outliers(features, noise, 3, 2, 2, normalize_candidates=normalize)
    order = sorted(kept, key=lambda index: -scores[index])
    torch.testing.assert_close(outliers, candidates[order], atol=1e-12, rtol=0)
    assert sources.tolist() == [[4, 2][index // 4] for index in order]


def test_outliers_around_the_origin() -> None:
    features, noise = example()
    outliers, _ = synthesize_outliers(features, noise, 3, 2, 2, centers="origin")
    # The same four vectors twice, so the third is one of a pair.
    close(outliers, torch.stack([noise[1], noise[1], noise[2]]).tolist())
    close(outliers.norm(dim=1), noise[[1, 1, 2]].norm(dim=1).tolist())


def test_fewer_samples_than_asked_for() -> None:
    features, noise = example()
    outliers, sources = synthesize_outliers(features, noise, num_kept=1000)
    assert outliers.shape == (7 * 4, 3)
    assert sorted(sources.unique().tolist()) == list(range(7))


def test_search_in_chunks_equals_brute_force() -> None:
    queries, samples = torch.randn(2100, 5, dtype=F64), torch.randn(40, 5, dtype=F64)
    expected = (queries.unsqueeze(1) - samples).square().sum(2).sort(dim=1).values[:, 6]
    torch.testing.assert_close(distance_to_neighbor(queries, samples, 7), expected, atol=1e-10, rtol=0)


def test_module_scales_the_noise_and_counts_classes() -> None:
    features = torch.randn(30, 8)
    vor = VirtualOutliers(sigma=0.01, num_draws=20, kept_per_class=7)
    first, again = (vor.synthesize(features, 3, torch.Generator().manual_seed(5)) for _ in range(2))
    assert first.features.shape == (21, 8)
    assert torch.equal(first.features, again.features)
    spread = (first.features - features[first.sources]).std()
    assert spread.item() == pytest.approx(0.01, rel=0.3)


def test_norm_of_outliers_around_the_origin() -> None:
    """The root of 768 times 0.1: what the official code trains against."""
    noise = torch.randn(600, 768, generator=torch.Generator().manual_seed(0))
    assert (0.1 * noise).norm(dim=1).mean().item() == pytest.approx(2.7704, abs=0.02)


@pytest.mark.parametrize(
    "arguments",
    [{"weight": -1}, {"sigma": 0}, {"neighbor": 0}, {"num_draws": 0}, {"penalty": "l1"}, {"centers": "middle"}],
)
def test_bad_arguments_are_refused(arguments) -> None:
    (name,) = arguments
    with pytest.raises(ValueError, match=f"{name}="):
        VirtualOutliers(**arguments)
