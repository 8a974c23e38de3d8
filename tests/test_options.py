"""Bad input: errors that name the argument, the bound and the value, and change nothing."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers.models import BACKENDS, parameters, values

import fused_optim
from fused_optim import (
    ASGD,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Adan,
    AdEMAMix,
    Lion,
    NAdam,
    RAdam,
    RMSprop,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
)
from fused_optim.tensor_checks import check_gradient

BAD = [
    (AdamW, {"lr": -1.0}, r"lr must be >= 0, got -1\.0"),
    (AdamW, {"lr": math.nan}, "lr must be >= 0, got nan"),
    (AdamW, {"lr": torch.tensor([1.0, 2.0])}, r"lr must have one element, got shape \(2,\)"),
    (AdamW, {"lr": "fast"}, "lr must be a number, got 'fast'"),
    (Adam, {"betas": (0.9, 1.0)}, r"betas\[1\] must be in \[0, 1\), got 1\.0"),
    (Adam, {"betas": (-0.1, 0.9)}, r"betas\[0\] must be in \[0, 1\), got -0\.1"),
    (Adam, {"betas": (math.nan, 0.9)}, r"betas\[0\] must be in \[0, 1\), got nan"),
    (Adam, {"betas": 0.9}, r"betas must be 2 numbers, got 0\.9"),
    (Adam, {"eps": -1e-8}, "eps must be >= 0, got -1e-08"),
    (AdamW, {"weight_decay": -0.1}, r"weight_decay must be >= 0, got -0\.1"),
    (AdamW, {"weight_decay": math.inf}, "weight_decay must be finite, got inf"),
    (SGD, {"momentum": -0.9}, r"momentum must be >= 0, got -0\.9"),
    (SGD, {"dampening": math.nan}, "dampening must be finite, got nan"),
    (SGD, {"nesterov": True}, "nesterov needs momentum > 0 and dampening = 0, got momentum 0"),
    (SGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, r"dampening 0\.1"),
    (Adan, {"betas": (0.9, 0.999)}, r"betas must be 3 numbers, got \(0\.9, 0\.999\)"),
    (Adan, {"eps": -1.0}, r"eps must be >= 0, got -1\.0"),
    (AdEMAMix, {"betas": (0.9, 0.999)}, r"betas must be 3 numbers, got \(0\.9, 0\.999\)"),
    (AdEMAMix, {"betas": (0.9, 0.999, 1.0)}, r"betas\[2\] must be in \[0, 1\), got 1\.0"),
    (AdEMAMix, {"alpha": -1.0}, r"alpha must be >= 0, got -1\.0"),
    (AdEMAMix, {"eps": math.nan}, "eps must be >= 0, got nan"),
    (AdEMAMix, {"alpha_warmup": 0}, "alpha_warmup must be >= 1, got 0"),
    (AdEMAMix, {"beta3_warmup": 0}, "beta3_warmup must be >= 1, got 0"),
    (
        AdEMAMix,
        {"beta3_warmup": 9, "betas": (0.9, 0.9, 0.9)},
        r"beta3_warmup needs betas\[2\] > betas\[0\], got \(0\.9, 0\.9, 0\.9\)",
    ),
    (Lion, {"betas": (0.9, 1.0)}, r"betas\[1\] must be in \[0, 1\), got 1\.0"),
    (RMSprop, {"alpha": -0.1}, r"alpha must be >= 0, got -0\.1"),
    (RMSprop, {"momentum": -0.9}, r"momentum must be >= 0, got -0\.9"),
    (RMSprop, {"eps": math.nan}, "eps must be >= 0, got nan"),
    (RMSprop, {"weight_decay": -0.1}, r"weight_decay must be >= 0, got -0\.1"),
    (Adagrad, {"lr_decay": -1.0}, r"lr_decay must be >= 0, got -1\.0"),
    (Adagrad, {"initial_accumulator_value": -1}, "initial_accumulator_value must be >= 0, got -1"),
    (Adagrad, {"eps": -1e-8}, "eps must be >= 0, got -1e-08"),
    (NAdam, {"momentum_decay": -1.0}, r"momentum_decay must be >= 0, got -1\.0"),
    (NAdam, {"betas": (1.0, 0.9)}, r"betas\[0\] must be in \[0, 1\), got 1\.0"),
    (NAdam, {"eps": -1e-8}, "eps must be >= 0, got -1e-08"),
    (RAdam, {"betas": (0.9, 1.0)}, r"betas\[1\] must be in \[0, 1\), got 1\.0"),
    (RAdam, {"eps": -1e-8}, "eps must be >= 0, got -1e-08"),
    (Adamax, {"betas": (0.9,)}, r"betas must be 2 numbers, got \(0\.9,\)"),
    (Adamax, {"eps": -1e-8}, "eps must be >= 0, got -1e-08"),
    (Adadelta, {"rho": 1.5}, r"rho must be <= 1, got 1\.5"),
    (Adadelta, {"rho": -0.5}, r"rho must be >= 0, got -0\.5"),
    (Adadelta, {"eps": -1e-8}, "eps must be >= 0, got -1e-08"),
    (ASGD, {"alpha": math.nan}, "alpha must be finite, got nan"),
    (ASGD, {"lambd": math.inf}, "lambd must be finite, got inf"),
    (ASGD, {"t0": "late"}, "t0 must be a number, got 'late'"),
    (ScheduleFreeAdamW, {"betas": (0.0, 0.9)}, r"betas\[0\] must be in \(0, 1\), got 0\.0"),
    (ScheduleFreeAdamW, {"eps": -1.0}, r"eps must be >= 0, got -1\.0"),
    (ScheduleFreeSGD, {"momentum": 0}, r"momentum must be in \(0, 1\), got 0"),
    (ScheduleFreeSGD, {"momentum": 1.0}, r"momentum must be in \(0, 1\), got 1\.0"),
    (ScheduleFreeSGD, {"warmup_steps": -1}, "warmup_steps must be >= 0, got -1"),
    (ScheduleFreeSGD, {"r": math.inf}, "r must be finite, got inf"),
    (ScheduleFreeSGD, {"weight_lr_power": -1}, "weight_lr_power must be >= 0, got -1"),
    (SGD, {"l1": -1.0}, r"l1 must be >= 0, got -1\.0"),
    (SGD, {"max_grad_value": -1.0}, r"max_grad_value must be >= 0, got -1\.0"),
    (SGD, {"nonfinite": "ignore"}, "nonfinite must be one of 'propagate', 'skip', got 'ignore'"),
    (
        SGD,
        {"backend": "cuda"},
        "backend must be one of 'auto', 'triton', 'native', 'reference', got 'cuda'",
    ),
    (SGD, {"differentiable": True}, "differentiable must be False, got True"),
]
IDS = [f"{cls.__name__}-{'-'.join(options)}-{i}" for i, (cls, options, _) in enumerate(BAD)]


@pytest.mark.parametrize(("cls", "options", "message"), BAD, ids=IDS)
def test_bad_option(cls, options, message):
    """Guard against bad options in the defaults, a group or an added group."""
    kinds = (ValueError, TypeError)
    with pytest.raises(kinds, match=message):
        cls([torch.zeros(1, requires_grad=True)], **options)
    with pytest.raises(kinds, match=message):
        cls([{"params": [torch.zeros(1, requires_grad=True)], **options}])
    optimizer = cls([torch.zeros(1, requires_grad=True)])
    groups = repr(optimizer.param_groups)
    with pytest.raises(kinds, match=message):
        optimizer.add_param_group({"params": [torch.zeros(2, requires_grad=True)], **options})
    assert repr(optimizer.param_groups) == groups


def test_bad_norm():
    params = [torch.zeros(1, requires_grad=True)]
    for value in (-1.0, math.nan):
        with pytest.raises(ValueError, match=f"max_grad_norm must be >= 0, got {value}"):
            SGD(params, max_grad_norm=value)
    optimizer = SGD(params, max_grad_norm=2.0)
    with pytest.raises(ValueError, match="max_grad_norm must be >= 0, got -3"):
        optimizer.max_grad_norm = -3
    assert optimizer.max_grad_norm == 2.0
    with pytest.raises(ValueError, match="max_grad_norm is one bound on the norm over all groups"):
        SGD([{"params": params, "max_grad_norm": 1.0}])


def test_unknown_keyword():
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_norm'"):
        SGD([torch.zeros(1, requires_grad=True)], max_norm=1.0)


def test_bad_parameters():
    one = torch.zeros(3, requires_grad=True)
    with pytest.raises(ValueError, match="optimizer got an empty parameter list"):
        SGD([])
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        SGD([{"params": [one]}, {"params": [one]}])
    with pytest.raises(TypeError, match="should be an iterable of Tensors"):
        SGD(one)
    with pytest.raises(ValueError, match="can't optimize a non-leaf Tensor"):
        SGD([one * 2])
    with pytest.raises(
        ValueError, match=r"shape \(3, 4\) in group 0 must not overlap itself in memory"
    ):
        SGD([torch.zeros(3, 1).expand(3, 4).requires_grad_()])
    with pytest.raises(ValueError, match="must be a dense tensor that owns its memory"):
        SGD([torch.zeros(3, 4).to_sparse().requires_grad_()])


def unchanged_by(optimizer, params, kind, message):
    before = [p.detach().clone() for p in params]
    with pytest.raises(kind, match=message):
        optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert not optimizer.state
    assert optimizer.grad_norm is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_gradients(backend):
    """Guard against a partial step: the second parameter is at fault."""
    params = parameters(values([(4,), (3, 2)], torch.float32))
    optimizer = AdamW([{"params": params[:1]}, {"params": params[1:]}], backend=backend)
    params[0].grad = torch.ones(4)
    params[1].grad = torch.ones(3, 2).to_sparse()
    message = r"gradient of the parameter of shape \(3, 2\) in group 1 is sparse"
    unchanged_by(optimizer, params, RuntimeError, message)
    params[1].grad = torch.ones(3, 2)
    params[1].data = params[1].data[:2]
    message = r"must match \(2, 2\) torch.float32 on cpu, got \(3, 2\) torch.float32 on cpu"
    unchanged_by(optimizer, params, ValueError, message)
    params[1].data = torch.zeros(3, 2)
    assert params[1].grad is not None
    optimizer.step()


def test_a_gradient_on_another_device():
    """Guard against reading a gradient on another device, imitated since torch refuses one."""
    param = SimpleNamespace(**{n: getattr(torch.zeros(3), n) for n in ("shape", "device", "dtype")})
    param.grad = torch.zeros(3, device="meta")
    message = r"gradient of the parameter of shape \(3,\) in group 2 must match .* cpu, got .* meta"
    with pytest.raises(ValueError, match=message):
        check_gradient(param, 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_state(backend):
    """Guard against a shorter state, past whose end a kernel would write."""
    params = parameters(values([(4,)], torch.float32))
    optimizer = SGD(params, momentum=0.9, backend=backend)
    for state in (torch.zeros(3), torch.zeros(4, dtype=torch.int64), torch.zeros(1).expand(4), 1.0):
        optimizer.state[params[0]]["momentum_buffer"] = state
        params[0].grad = torch.ones(4)
        with pytest.raises(ValueError, match="the state 'momentum_buffer' of the parameter"):
            optimizer.step()


def test_a_refused_backend_says_why():
    params = [torch.nn.Parameter(torch.zeros(3, device="meta"))]
    params[0].grad = torch.zeros(3, device="meta")
    optimizer = SGD(params, backend="triton")
    with pytest.raises(RuntimeError, match="backend='triton' cannot be used: meta tensors have no"):
        optimizer.step()


def test_torch_arguments_come_first_and_in_order():
    """Guard against positional calls that mean something else than in torch.optim."""
    import inspect

    namesakes = [name for name in fused_optim.__all__ if hasattr(torch.optim, name)]
    assert {"ASGD", "Adam", "SGD"} <= set(namesakes)
    for cls, torch_class in ((getattr(fused_optim, n), getattr(torch.optim, n)) for n in namesakes):
        theirs = list(inspect.signature(torch_class).parameters.values())
        ours = list(inspect.signature(cls).parameters.values())
        assert [(p.name, p.default, p.kind) for p in ours[: len(theirs)]] == [
            (p.name, p.default, p.kind) for p in theirs
        ]
        more = ours[len(theirs) :]
        assert more[-1].name == "additions"
        assert all(p.kind is p.KEYWORD_ONLY for p in more[:-1])
        for flag in ("foreach", "fused", "capturable"):
            if flag in {p.name for p in theirs}:
                for value in (True, False):
                    cls([torch.zeros(1, requires_grad=True)], **{flag: value})


# options that torch.optim refuses too, by the optimizers that have them
REFUSED_BY_TORCH = [
    {"lr": -1.0},
    {"lr": torch.ones(2)},
    {"eps": -1e-8},
    {"betas": (1.0, 0.9)},
    {"betas": (0.9, -0.5)},
    {"weight_decay": -0.1},
    {"momentum": -0.9},
    {"adjust_lr_fn": "x"},
    {"momentum_decay": -1.0},
    {"alpha": -0.1},
    {"rho": 1.5},
    {"lr_decay": -1.0},
    {"initial_accumulator_value": -1.0},
    {"nesterov": True},
]


@pytest.mark.parametrize("options", REFUSED_BY_TORCH, ids=str)
def test_messages_begin_with_those_of_torch(options):
    """Guard against messages that code matching torch's text would miss."""
    (name,) = options
    seen = 0
    for cls in (getattr(fused_optim, n) for n in fused_optim.__all__ if hasattr(torch.optim, n)):
        torch_class = getattr(torch.optim, cls.__name__)
        params = [torch.zeros(1, 1, requires_grad=True)]  # a matrix, for Muon
        try:
            torch_class(params, **options)
        except ValueError as error:
            theirs = str(error)
        except TypeError:
            continue  # it has no such option
        else:
            continue  # torch takes it
        with pytest.raises(ValueError, match=name) as result:
            cls(params, **options)
        assert str(result.value).startswith(f"{theirs}: {name}")
        seen += 1
    assert seen > 0


def test_a_complex_parameter_is_told_which_formats_it_can_have():
    param = torch.nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"'weights': 'plain', 'states': 'param'\}"):
        fused_optim.AdamW([param], states="int8")
    fused_optim.AdamW([{"params": [param], "weights": "plain", "states": "param"}], states="int8")
