"""L2P, DualPrompt and CODA-Prompt against the worked examples of their specification."""

import pytest
import torch
from test_oneprompt import F64, Snapshots, sines

from zoo.continual.coda_prompt import PromptComponents, component_weights, gram_schmidt, orthogonality
from zoo.continual.dualprompt import DualPrompts
from zoo.continual.l2p import PromptPool, cosine

QUERY, KEYS, ATTENTIONS = sines(3, 3, 1, 0.8, 0), sines(4, 3, 1.4, 0.5, 0.2), sines(4, 3, 0.6, 1.1, 0.4)
COSINES = [
    [0.9848183361, 0.6504015251, -0.9685326833, -0.7642715112],
    [0.7994763699, 0.9907773556, -0.5226220439, -0.9898220992],
    [-0.0130499484, 0.6422137051, 0.3835955255, -0.5093586443],
]


def close(actual, expected) -> None:
    torch.testing.assert_close(actual.detach(), torch.as_tensor(expected, dtype=F64), atol=1e-9, rtol=0)


def marked(*shape: int) -> torch.Tensor:
    """Return numbers that are all different, so that each says where it came from."""
    return torch.arange(torch.Size(shape).numel(), dtype=F64).view(shape)


def test_cosines() -> None:
    close(cosine(QUERY, KEYS), COSINES)
    close(cosine(100 * QUERY, 0.01 * KEYS), COSINES)


@pytest.mark.parametrize(("cross_batch", "loss"), [(False, 0.258119530432), (True, 0.484160662710)])
def test_pool_gives_the_prompts_of_the_nearest_keys(cross_batch: bool, loss: float) -> None:
    pool = PromptPool((2,), 4, 2, 2, 3, cross_batch).double()
    pool.keys[0].data.copy_(KEYS)
    pool.prefixes[0].data.copy_(marked(4, 2, 2, 3))
    prefixes, key_loss = pool(QUERY, 0)
    close(key_loss, loss)
    chosen = [[0, 1], [1, 0], [1, 2]]
    for image, numbers in enumerate(chosen):
        for which in (0, 1):  # keys, values
            expected = torch.cat([pool.prefixes[0][number, which] for number in numbers])
            close(prefixes[2][image, which], expected.detach())
    in_evaluation, _ = pool(QUERY, None)
    assert torch.equal(in_evaluation[2], prefixes[2])


def test_pool_trains_chosen_prompts_and_keys_only() -> None:
    pool = PromptPool((0,), 4, 2, 2, 3).double()
    pool.keys[0].data.copy_(KEYS)
    prefixes, key_loss = pool(QUERY, 0)
    (prefixes[0].sum() + key_loss).backward()
    counts = [2, 3, 1, 0]
    assert pool.prefixes[0].grad.amax(dim=(1, 2, 3)).tolist() == counts
    assert (pool.keys[0].grad != 0).any(dim=1).tolist() == [True, True, True, False]


def dual() -> DualPrompts:
    prompts = DualPrompts((0,), 2, (1,), 2, 4, 3).double()
    prompts.keys[0].data.copy_(KEYS)
    prompts.experts[0].data.copy_(marked(4, 2, 2, 3))
    return prompts


def test_expert_of_the_task_in_training() -> None:
    prompts = dual()
    prefixes, loss = prompts(QUERY, 1)
    close(loss, 0.238869138048)
    close(3 * loss, 0.716607414145)
    close(prefixes[1], prompts.experts[0][[1, 1, 1]].detach())
    assert torch.equal(prefixes[0], prompts.general[0])
    (prefixes[1].sum() + loss).backward()
    assert (prompts.experts[0].grad != 0).flatten(1).any(dim=1).tolist() == [False, True, False, False]
    assert (prompts.keys[0].grad != 0).any(dim=1).tolist() == [False, True, False, False]


def test_nearest_expert_in_evaluation() -> None:
    prompts = dual()
    close(prompts(QUERY, None)[0][1], prompts.experts[0][[0, 1, 1]].detach())


def components(layers: tuple[int, ...] = (0,)) -> PromptComponents:
    prompts = PromptComponents(layers, 4, 1, 2, 2).double()
    m, i, j = torch.meshgrid(*(torch.arange(n, dtype=F64) for n in (4, 2, 2)), indexing="ij")
    for block in range(len(layers)):
        prompts.prefixes[block].data.copy_(torch.sin(m + 2 * i + 0.5 * j).unsqueeze(2))
        for part, rows in ((prompts.keys, KEYS), (prompts.attentions, ATTENTIONS)):
            part[block] = torch.nn.Parameter(rows.clone())  # of width 3 here, while components have width 2
    return prompts


def test_weights_of_components() -> None:
    close(
        component_weights(QUERY, KEYS, ATTENTIONS),
        [
            [0.9279580890, 0.5720618051, 0.6139017046, 0.5623387247],
            [0.7704368158, 0.9095863478, 0.2524037407, -0.0876369673],
            [0.1180273026, 0.8857985953, -0.1563516418, -0.7296931480],
        ],
    )


def test_weighted_sum_of_components() -> None:
    prompts = components()
    sums, penalty = prompts(QUERY, None)
    expected = [
        [[1.1189498962, 1.1856596657], [-0.0793233265, -0.6421726717]],
        [[0.9825332623, 1.4584730934], [0.7219344814, -0.0428835058]],
        [[0.5002293679, 1.1025569765], [1.0503736128, 0.4275791425]],
    ]
    close(sums[0].squeeze(2), expected)
    parts = (KEYS, ATTENTIONS, prompts.prefixes[0].flatten(1))
    expected = (1.520809996946, 0.734982110842, 1.210574368651)
    for rows, value in zip(parts, expected, strict=True):
        close(orthogonality(rows), value)
    close(16 * orthogonality(KEYS), 24.332959951128)
    close(penalty, sum(expected))
    close(components((0, 2, 3))(QUERY, None)[1], sum(expected))  # a mean over blocks


def test_components_of_earlier_tasks_are_held() -> None:
    prompts = components()
    sums, penalty = prompts(QUERY, 1)
    (sums[0].square().sum() + penalty).backward()
    for part in (prompts.prefixes[0], prompts.keys[0], prompts.attentions[0]):
        assert (part.grad != 0).flatten(1).any(dim=1).tolist() == [False, False, True, True]
    assert torch.equal(prompts(QUERY, None)[0][0], sums[0])  # all there are: two tasks of two components


def test_components_of_later_tasks_do_not_exist() -> None:
    prompts = PromptComponents((0,), 5, 2, 2, 8)
    prompts.start_task(0, torch.Generator().manual_seed(0))
    query = torch.randn(3, 8)
    torch.testing.assert_close(prompts(query, None)[0][0], prompts(query, 0)[0][0], atol=1e-7, rtol=0)
    assert all((part[2:] == 0).all() for part in prompts.parameters())


def test_gram_schmidt_of_draws() -> None:
    draws = sines(3, 4, 1, 0.7, 0) + torch.eye(3, 4, dtype=F64)
    rows = gram_schmidt(draws[:0], draws)
    close(
        rows,
        [
            [0.5651198639, 0.3640602117, 0.5568972173, 0.4878167598],
            [-0.0379997782, 0.8776071194, -0.1331361360, -0.4589515552],
            [0.4639333672, -0.3089429872, 0.3784826720, -0.7389661213],
        ],
    )
    close(rows @ rows.T, torch.eye(3))


def test_gram_schmidt_beside_rows_that_are_not_orthogonal_is_the_classical_form() -> None:
    rows = sines(4, 4, 1, 0.7, 0) + torch.eye(4, dtype=F64)
    close(
        gram_schmidt(rows[:2], rows[2:]),
        [
            [0.1342587868, -0.4696070414, 0.0659700391, -0.8701101992],
            [0.6939450665, 0.3535413990, -0.3984150986, 0.4844730468],
        ],
    )


def test_a_dead_component_stops_the_run() -> None:
    with pytest.raises(ValueError, match="A component is nearly zero"):
        gram_schmidt(torch.zeros(1, 4), torch.randn(1, 4))


def test_a_task_draws_its_components_and_keeps_the_others(method, stream, trainer) -> None:
    snapshots = Snapshots()
    module = method("CodaPrompt", num_components=7)
    trainer(snapshots).fit(module, stream())
    for task, (before, after) in enumerate(zip(snapshots.before, snapshots.after, strict=True)):
        for name in (name for name in before if name.startswith("prompts.")):
            start, own, later = before[name].flatten(1).split([2 * task, 2, 5 - 2 * task])
            torch.testing.assert_close(own.norm(dim=1), torch.ones(2))
            assert (later == 0).all()
            assert torch.equal(after[name].flatten(1)[: 2 * task], start)
            assert not torch.equal(after[name].flatten(1)[2 * task : 2 * task + 2], own)
            if task:
                assert torch.equal(start, snapshots.after[task - 1][name].flatten(1)[: 2 * task])


@pytest.mark.parametrize("name", ["L2P", "DualPrompt", "CodaPrompt"])
def test_query_is_the_feature_without_prompts(name, method, stream, trainer) -> None:
    module = method(name)
    images = torch.rand(2, 3, 8, 8)
    plain = module.backbone(images)
    queries, original = [], module.prompts.forward

    def spy(query, task):
        queries.append(query)
        return original(query, task)

    module.prompts.forward = spy
    module.prompts.start_task(0, torch.Generator()) if name == "CodaPrompt" else None
    for _ in range(2):  # the second time after a forward with prompts
        features, _ = module.features(images, 0)
        assert not torch.allclose(features, plain)
    assert all(torch.equal(query, plain) and not query.requires_grad for query in queries)


@pytest.mark.parametrize("name", ["DualPrompt", "CodaPrompt"])
def test_a_longer_stream_is_refused(name, method, stream, trainer) -> None:
    with pytest.raises(ValueError, match="max_tasks=2 is too small for a stream of 3 tasks"):
        trainer().fit(method(name, max_tasks=2), stream())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("L2P", {"top_k": 31}, "top_k=31 must be between 1 and pool_size=30"),
        ("DualPrompt", {"expert_layers": (1, 2)}, "no block in common"),
        ("DualPrompt", {"max_tasks": 0}, "max_tasks=0"),
        ("CodaPrompt", {"num_components": 2}, "max_tasks=3 must be between 1 and num_components=2"),
    ],
)
def test_bad_arguments_are_refused(name, arguments, message, method) -> None:
    with pytest.raises(ValueError, match=message):
        method(name, **arguments)
