"""The recipes do what their first lines say; each runs once, as a user runs it.

Faults tried by hand, each found, some: momentum with a dampened gradient; a schedule that is not
told of its metric; no penalty, no dropout, the last weights in the place of the best; He without
the gain of ReLU; a bound that does not clip; a body that is not frozen; no ``T**2``; copies in the
place of a shared layer; a checkpoint without the optimizer, the schedule or the random generator.
"""

import importlib
import math
import re
from itertools import pairwise
from unittest import mock

import pytest
import torch
from helpers.processes import ROOT
from torch import nn

import fused_optim
from examples.recipes import RECIPES

FOLDER = ROOT / "examples" / "recipes"
IMAGES = ROOT / "docs" / "images" / "recipes"
SHORTER = {"compare_optimizers": {"STEPS": 150}}
# half of the time of a picture, of which no test sees more than that it is one
LAYOUT = "matplotlib.layout_engine.ConstrainedLayoutEngine.execute"


def load(name):
    """Import a recipe within a test: scikit-learn is needed by these tests alone."""
    return importlib.import_module(f"examples.recipes.{name}")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return a function that runs a recipe, once, and returns what it computed."""
    folder, done = tmp_path_factory.mktemp("recipes"), {}

    def run(name):
        if name not in done:
            recipe = load(name)
            shorter = mock.patch.dict(vars(recipe), SHORTER.get(name, {}))
            with shorter, mock.patch(LAYOUT):
                done[name] = recipe.main(["--out", str(folder)])
            assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        return done[name]

    return run


def mean(values):
    return sum(values) / len(values)


def test_every_recipe_is_listed_and_short():
    scripts = {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "__main__", "common"}
    page = (FOLDER / "README.md").read_text()
    listed = re.findall(
        r"^\| `python -m examples\.recipes\.(\w+)` \|.*/(\w+)\.png\) \|$", page, re.M
    )
    assert [pair[0] for pair in listed] == [pair[1] for pair in listed] == list(RECIPES)
    assert set(RECIPES) == scripts == {path.stem for path in IMAGES.glob("*.png")}
    for name in RECIPES:
        text = (FOLDER / f"{name}.py").read_text()
        assert f"``python -m examples.recipes.{name}``" in text.partition("\n")[0]
        assert len(text.splitlines()) < 180
        assert (IMAGES / f"{name}.png").stat().st_size < 60_000


def test_rules_by_hand_equal_ours(results):
    found = results("update_rules")
    compared = {name: gap for name, (_, gap) in found.items() if gap is not None}
    assert list(compared) == ["full batch", "single sample", "mini-batch of 2", "momentum", "Adam"]
    assert max(compared.values()) < 1e-13
    errors = {name: errors for name, (errors, _) in found.items()}
    full = errors["full batch"]
    assert all(after < before for before, after in pairwise(full))
    assert all(errors[name][-1] < 0.01 * errors[name][0] for name in compared)
    assert errors["momentum"][-1] < 0.05 * full[-1]


def test_mistakes_in_adam(results):
    errors = {name: errors for name, (errors, _) in results("update_rules").items()}
    # eps alone has another weight in the smaller unit
    assert errors["Adam, loss / 1000"] == pytest.approx(errors["Adam"], rel=1e-3)
    assert errors["no root"][20] > 0.7 * errors["no root"][0]
    assert max(errors["no root, loss / 1000"]) > 2 * errors["no root"][0]
    assert all(math.isnan(error) for error in errors["count from 0: NaN"][1:])


def test_schedules_that_end_low_end_with_a_lower_loss(results):
    runs = results("schedules")["runs"]
    last = {name: mean(run["losses"][-3:]) for name, run in runs.items()}
    high = 0.9 * last["constant"]
    assert all(loss < high for name, loss in last.items() if name not in ("constant", "cyclic"))
    rates = {name: run["rates"] for name, run in runs.items()}
    steps = len(rates["constant"])
    assert set(rates["constant"]) == {0.2}
    assert rates["linear"][steps // 2] == pytest.approx(0.2 * 0.505, rel=0.01)
    assert rates["exponential"][steps // 2] == pytest.approx(0.02, rel=0.01)
    assert sorted(set(rates["step"])) == pytest.approx([0.002, 0.02, 0.2])
    cosine = rates["cosine, warm-up, restart"]
    assert cosine[0] == pytest.approx(0.01)
    jumps = [after / before for before, after in pairwise(cosine)]
    assert sum(jump > 100 for jump in jumps) == 1
    assert sum(rate > 0.199 for rate in rates["cyclic"]) == 3
    assert rates["on a metric"][-1] < rates["on a metric"][0]


def test_range_test_judges_rates(results):
    (small, low), (right, good), (large, high) = results("schedules")["judged"].values()
    assert (small, right, large) == ("too small", "right", "too large")
    assert good < 0.7 * low
    assert good < 0.7 * high


def test_optimizers_follow_their_ways(results):
    found = results("compare_optimizers")
    recipe = load("compare_optimizers")
    for function, form_value in recipe.FUNCTIONS.items():
        for name, path in found["paths"][function].items():
            assert form_value(path[-1]) < form_value(path[0]) - 0.2, (function, name)
    rosenbrock = {name: row[0] for name, row in found["rows"].items() if name != "Muon"}
    left_saddle = {name: row[2] for name, row in found["rows"].items() if name != "Muon"}
    assert max(rosenbrock, key=rosenbrock.get) == "SGD"
    assert max(left_saddle, key=left_saddle.get) == "SGD"
    assert all(mean(losses[-10:]) < 0.5 * losses[0] for losses, _ in found["nets"].values())
    steps = found["paths"]["saddle"]["Lion"].diff(dim=0)[:20].abs()
    assert torch.allclose(steps, torch.full_like(steps, 0.02), atol=1e-6)


def test_muon_is_for_matrices():
    with pytest.raises(ValueError, match="only supports 2D"):
        fused_optim.Muon([torch.zeros(2, requires_grad=True)])
    net = load("common").make_net(64, 64, 64, 10)
    hidden, *rest = load("compare_optimizers").make_muon(net).explain().rows
    assert (hidden.shape, hidden.rule) == ((64, 64), "muon_nesterov")
    assert [row.rule for row in rest] == ["adam"] * 5


def test_regularization(results):
    found = results("regularization")
    assert found["shares"]["L1"] > 0.5 > 0.2 > found["shares"]["plain"]
    decayed = found["decayed"]
    recipe = load("regularization")
    expected = (1 - recipe.DECAY_RATE * recipe.DECAY) ** recipe.DECAY_STEPS
    # the alternating gradients leave less than a step
    assert torch.allclose(decayed["AdamW"], torch.tensor(expected), atol=recipe.DECAY_RATE)
    assert decayed["Adam (L2)"][-1] > 0.8 > 0.3 > decayed["Adam (L2)"][0]
    plain, dropout = found["runs"]["plain"], found["runs"]["dropout"]
    assert plain["losses"][-1] > 1.05 * plain["losses"][plain["best"]]
    assert dropout["losses"][-1] < 0.95 * plain["losses"][-1]


def test_early_stopping_keeps_the_best_weights(results):
    run = results("regularization")["runs"]["plain"]
    assert run["stopped"] == run["best"] + load("regularization").PATIENCE
    assert run["losses"][run["best"]] == min(run["losses"][: run["stopped"] + 1])
    data = load("common").load_digits()
    loss, _ = load("common").evaluate(run["kept"], data.held_out_inputs, data.held_out_targets)
    assert loss == run["losses"][run["best"]]


def test_initialization(results):
    found = results("initialization")
    for activation in ("tanh", "ReLU"):
        assert (
            found[activation, "zeros"]["sizes"] == found[activation, "zeros"]["norms"] == [0] * 10
        )
        assert abs(found[activation, "zeros"]["after"] - math.log(10)) < 0.05
    sizes = {names: run["sizes"] for names, run in found.items()}
    norms = {names: run["norms"] for names, run in found.items()}
    assert 0.25 < sizes["ReLU", "He"][-1] / sizes["ReLU", "He"][0] < 4
    # the variance halves in each of nine layers: the root is 2 ** -4.5, 0.044
    assert sizes["ReLU", "Xavier"][-1] / sizes["ReLU", "Xavier"][0] < 0.1
    assert sizes["ReLU", "unit normal"][-1] > 1e5 * sizes["ReLU", "unit normal"][0]
    assert min(sizes["tanh", "unit normal"]) > 0.9
    assert norms["tanh", "unit normal"][0] > 100 * norms["tanh", "unit normal"][-1]
    assert max(norms["tanh", "Xavier"]) < 2 * min(norms["tanh", "Xavier"])
    after = {names: run["after"] for names, run in found.items()}
    assert after["ReLU", "He"] < after["ReLU", "Xavier"] < after["ReLU", "zeros"]
    assert max(after["tanh", "He"], after["tanh", "Xavier"]) < 0.7 * after["tanh", "zeros"]
    assert not after["ReLU", "unit normal"] < after["ReLU", "zeros"]


def test_clipping(results):
    plain, by_norm, by_value = results("clipping").values()
    assert max(plain["loss"][:-1]) > 1e3
    assert not math.isfinite(plain["norm"][-1])
    for curves in (by_norm, by_value):
        assert max(curves["norm"]) > 100
        assert mean(curves["loss"][-10:]) < 0.6 * math.log(10)
    assert set(plain["factor"][:-1]) == set(by_value["factor"]) == {1.0}
    expected = [min(1.0, 1 / (norm + 1e-6)) for norm in by_norm["norm"]]
    assert by_norm["factor"] == pytest.approx(expected, rel=1e-6)


def test_transfer_learning(results):
    found = results("transfer_learning")
    start, *stages = found["stages"]
    for count, weights in enumerate(stages, 1):
        frozen = [name for name in weights if int(name.partition(".")[0]) < 6 - 2 * count]
        assert len(frozen) == 6 - 2 * count
        assert all(torch.equal(weights[name], start[name]) for name in frozen)
        changed = [name for name in weights if name not in frozen]
        before = found["stages"][count - 1]
        assert not any(torch.equal(weights[name], before[name]) for name in changed)
    assert len(found["launches"]) == 6
    assert len(set(found["launches"])) == 1
    assert mean(found["right"][-40:]) > mean(found["random"][-40:]) + 0.02


def test_distillation(results):
    found = results("distillation")
    right = {name: mean(run["right"][-10:]) for name, run in found["runs"].items()}
    assert found["teacher"] > right["teacher"] > right["labels"] + 0.03
    assert right["teacher, shared weights"] > right["labels"] + 0.03
    assert found["by_temperature"][4.0] > found["by_temperature"][1.0] + 0.01


def test_temperature_leaves_the_scale_of_the_gradient():
    """For small scores both losses are the mean squared difference of centered scores."""
    recipe = load("distillation")
    torch.manual_seed(0)
    scores, teacher = torch.randn(2, 8, 10, dtype=torch.float64).mul(1e-3).unbind()
    scores.requires_grad_(True)
    gradients = [
        torch.autograd.grad(recipe.form_distillation_loss(scores, teacher, t), scores)[0]
        for t in (1.0, 4.0)
    ]
    assert torch.allclose(*gradients, rtol=0.01)


def test_a_shared_weight_is_one_parameter(results):
    """Its gradient is the sum over its uses, and it has one state."""
    recipe = load("distillation")
    run = results("distillation")["runs"]["teacher, shared weights"]
    student, optimizer = run["student"], run["optimizer"]
    assert len({id(layer) for layer in student.hidden}) == 1
    assert len(optimizer.state) == len(list(student.parameters())) == 6
    apart = recipe.Student(shared=False)
    apart.load_state_dict(student.state_dict())
    inputs = torch.randn(16, 64)
    for model in (student, apart):
        model.zero_grad()
        nn.functional.cross_entropy(model(inputs), torch.arange(16) % 10).backward()
    total = sum(layer.weight.grad for layer in apart.hidden)
    assert torch.allclose(student.hidden[0].weight.grad, total, atol=1e-6)


def test_a_resumed_training_is_the_same(results):
    found = results("training_loop")
    for run in found.values():
        whole, resumed = run["whole"], run["resumed"]
        assert whole.losses == resumed.losses
        assert len(whole.losses) == 20
        for first, last in zip(whole.losses[0], whole.losses[-1], strict=True):
            assert last < 0.95 * first
        for ours, theirs in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(ours, theirs)
    assert found["mean squared error"]["whole"].losses[-1][1] < 0.8  # of a variance of 1
    assert found["cross-entropy"]["whole"].losses[-1][1] < 0.3


def test_a_seed_gives_the_same_bits_again(monkeypatch):
    recipe = load("clipping")
    monkeypatch.setattr(recipe, "STEPS", 5)
    data = load("common").load_digits()
    first, again, other = (recipe.run(data, seed, max_grad_norm=1.0) for seed in (3, 3, 4))
    assert first == again
    assert first["loss"] != other["loss"]
