import pytest

from zoo.functional import Stage, curriculum, equivalent_epochs, stage_at
from zoo.functional.curriculum import PRESETS, compute_spans, scaled_size, with_epochs


def ends(stages):
    total, found = 0, []
    for stage in stages:
        total += stage.epochs
        found.append(total)
    return found


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (100, [20, 40, 60, 80, 100]),
        (300, [60, 120, 180, 240, 300]),
        (450, [90, 180, 270, 360, 450]),
        (7, [1, 2, 4, 5, 7]),
        (23, [4, 9, 13, 18, 23]),
    ],
)
def test_stage_ends_of_efficienttrain(total, expected):
    stages = curriculum("et", total)
    assert ends(stages) == expected
    assert [stage.size for stage in stages] == [160, 160, 160, 192, 224]
    assert [stage.magnitude for stage in stages] == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("total", [1, 2, 3, 4])
def test_short_runs_leave_empty_stages_out_and_end_at_full_size(total):
    stages = curriculum("et", total)
    assert sum(stage.epochs for stage in stages) == total
    assert all(stage.epochs > 0 for stage in stages)
    assert stages[-1].size == 224


def test_cost_of_efficienttrain():
    assert equivalent_epochs(curriculum("et", 300)) / 300 == pytest.approx(0.6530612244897959)
    for base_size, saving in ((384, 2.823529411764706), (512, 3.4877384196185286)):
        stages = curriculum("et", 300, base_size, scale="last")
        assert [stage.size for stage in stages] == [160, 160, 160, 192, base_size]
        assert 300 / equivalent_epochs(stages, base_size) == pytest.approx(saving)
    # The ratios of the sizes are the published ones at 28 and at 56 pixels, and so is the cost.
    for base_size, divisor in ((28, 4), (56, 8)):
        stages = curriculum("et", 10, base_size, divisor=divisor)
        assert equivalent_epochs(stages, base_size) / 10 == pytest.approx(0.6530612244897959)


@pytest.mark.parametrize(
    ("name", "budget", "lengths", "spans", "epochs", "cost"),
    [
        (
            "etpp", 200, [1088] * 2 + [392] * 4 + [200] * 4,
            [(0, 108), (108, 217), (78, 117), (117, 156), (156, 196), (196, 235), (120, 140), (140, 160), (160, 180),
             (180, 200)], 454, 199.9592,
        ),
        (
            "etpp-deit", 200, [1088] * 2 + [392] * 4 + [272] * 2 + [200] * 2,
            [(0, 108), (108, 217), (78, 117), (117, 156), (156, 196), (196, 235), (163, 190), (190, 217), (159, 180),
             (180, 200)], 469, 200.6327,
        ),
        (
            "etpp-deit", 199, [1083] * 2 + [390] * 4 + [270] * 2 + [199] * 2,
            [(0, 108), (108, 216), (78, 117), (117, 156), (156, 195), (195, 234), (162, 189), (189, 216), (159, 179),
             (179, 199)], 466, 198.9388,
        ),
        (
            "etpp-convnext", 200, [392] * 6 + [200] * 4,
            [(0, 39), (39, 78), (78, 117), (117, 156), (156, 196), (196, 235), (120, 140), (140, 160), (160, 180),
             (180, 200)], 315, 199.8980,
        ),
    ],
)  # fmt: skip
def test_integers_of_the_scripts_of_efficienttrain_plus_plus(name, budget, lengths, spans, epochs, cost):
    found = compute_spans(budget, PRESETS[name].sizes, 224)
    assert [(start, end) for start, end, _ in found] == spans
    assert [length for _, _, length in found] == lengths
    stages = curriculum(name, budget)
    assert sum(stage.epochs for stage in stages) == epochs
    assert equivalent_epochs(stages) == pytest.approx(cost, abs=1e-4)
    assert [stage.magnitude for stage in stages] == list(range(10))


@pytest.mark.parametrize(("budget", "totals"), [(100, (226, 234, 157)), (150, (340, 351, 236)), (300, (681, 703, 472))])
def test_epochs_of_other_budgets(budget, totals):
    for name, total in zip(("etpp", "etpp-deit", "etpp-convnext"), totals, strict=True):
        assert sum(stage.epochs for stage in curriculum(name, budget)) == total


@pytest.mark.parametrize(("budget", "name", "some_empty"), [
    (8, "etpp", True), (9, "etpp", False), (8, "etpp-convnext", True), (9, "etpp-convnext", False),
    (5, "etpp-deit", True), (6, "etpp-deit", False), (7, "etpp-deit", True), (8, "etpp-deit", False),
])  # fmt: skip
def test_small_budgets_leave_stages_empty(budget, name, some_empty):
    assert (len(curriculum(name, budget)) < 10) is some_empty


@pytest.mark.parametrize(("size", "base_size", "divisor", "expected"), [
    (96, 32, 4, 12), (160, 32, 4, 24), (192, 32, 4, 28), (224, 32, 4, 32), (160, 56, 8, 40), (96, 28, 4, 12),
    (160, 384, 32, 288),  # 274.29: 288 is nearer than 256
])  # fmt: skip
def test_sizes_for_other_images(size, base_size, divisor, expected):
    assert scaled_size(size, base_size, divisor=divisor) == expected


def test_stage_of_an_epoch_and_cost_so_far():
    stages = curriculum("et", 10)
    assert [stage_at(stages, epoch).size for epoch in (0, 5, 6, 7, 8, 9)] == [160, 160, 192, 192, 224, 224]
    assert stage_at(stages, 99).size == 224
    assert equivalent_epochs(stages, epochs=7) == pytest.approx(6 * (160 / 224) ** 2 + (192 / 224) ** 2)
    assert equivalent_epochs(stages, epochs=12) == pytest.approx(10 * 0.6530612244897959 + 2)
    small, large = Stage(112, 1), Stage(224, 1)
    assert equivalent_epochs([small, large, small], epochs=3) == 1.5  # the same stage twice


def test_stages_of_ones_own():
    stages = with_epochs([Stage(16, equivalent_epochs=1, magnitude=2), Stage(32, epochs=3)], 32)
    assert stages == [Stage(16, 4, magnitude=2), Stage(32, 3)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: curriculum("ett", 10), "'ett' is unknown; known are et, etpp"),
        (lambda: curriculum("et", 0), "total=0 must be positive"),
        (lambda: curriculum("et", 2.5), "whole number"),
        (lambda: curriculum("etpp", 0.5), "total=0.5 is too small"),
        (lambda: curriculum("et", 10, 160, scale="last"), "up to 192 pixels, which base_size=160 does not exceed"),
        (lambda: curriculum("etpp", 200, 160, scale="last"), "sizes up to 160 pixels"),
        (lambda: curriculum("et", 10, scale="first"), "scale='first' is unknown: use one of 'all', 'last'"),
        (lambda: curriculum("et", 10, 42, divisor=21), "divisor=21 makes an odd size of 160, 21"),
        (lambda: curriculum("et", 10, 30), "base_size=30 is no multiple of divisor=4"),
        (lambda: with_epochs([], 32), "no stage"),
        (lambda: with_epochs([Stage(33, 1)], 32), "Stage 0 .* size=33"),
        (lambda: with_epochs([Stage(15, 1)], 32), "must be even"),
        (lambda: with_epochs([Stage(32, 1), Stage(32)], 32), "Stage 1 .* needs either"),
        (lambda: with_epochs([Stage(32, 1, 1.0)], 32), "needs either"),
    ],
)
def test_impossible_plans(make, message):
    with pytest.raises(ValueError, match=message):
        make()
