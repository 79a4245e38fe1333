"""The optimizer: which there are, how a recipe's is built, its update, and what of its state is no tensor.

Those of OURS are built as the published runs had them: torch's, and timm's LAMB. All others are timm's factory's, with
its defaults and what `optim.args` says.
"""

import difflib
import inspect
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import torch
from timm.optim import Lamb, create_optimizer_v2, get_optimizer_info, list_optimizers, param_groups_weight_decay
from torch import Tensor, nn

from pipeline.config import Optim, Recipe
from pipeline.fields import flag
from shards.errors import Problem

OURS: Final[Mapping[str, type[torch.optim.Optimizer]]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "lamb": Lamb,
}
FIELDS: Final = {  # arguments that are fields of their own: of all optimizers, and of OURS
    "lr": (),
    "weight_decay": (),
    "betas": tuple(OURS),
    "eps": tuple(OURS),
    "momentum": tuple(OURS),
    "nesterov": tuple(OURS),
}
HOSTING: Final = ("self", "params", "foreach", "fused", "capturable", "differentiable", "verbose")  # change no number

# Those of which any part of a parameter can be updated by itself. Not torch's Adagrad, whose state is made with the
# optimizer, before DeepSpeed takes parameters apart. Nor Adan, which counts steps by group: ZeRO 3 steps it by parts.
ELEMENTWISE: Final = frozenset({
    "adabelief", "adadelta", "adam", "adamax", "adamc", "adamw", "adamwlegacy", "adopt", "adoptc", "adoptw",
    "laprop", "lapropc", "lion", "lionc", "madgrad", "madgradw", "momentum", "nadam", "nadamc", "nadamlegacy",
    "nadamw", "nesterov", "nesterovw", "radabelief", "radam", "radamlegacy", "radamw", "rmsprop", "rmsproptf",
    "rmsproptfc", "rmsproptfw", "sgd", "sgdc", "sgdw",
})  # fmt: skip
OF_WHOLE: Final = ("caution", "clipping_threshold")  # arguments that take a mean over a whole parameter

NEAR: Final = 3  # names that a misspelt one may have meant
COUNTER: Final = "step"  # what timm's LAMB and Adan count in their groups, not by parameter
NUMBERS: Final = {bool: torch.bool, int: torch.int64, float: torch.float64}  # how numbers of Python are saved
KEPT_OF: Final = 64  # side of the matrix that an optimizer's memory is measured on


def build_optimizer(net: nn.Module, recipe: Recipe, scales: Mapping[str, float]) -> torch.optim.Optimizer:
    """Return the optimizer of a timm model; `scales` are shares of the rate, by name.

    Weight decay skips biases, 1-D parameters and what the model names (class token, position embeddings): timm's rule,
    as in DeiT. The distillation token decays, as in the published runs, whose timm knew of none. timm's Muon updates
    by AdamW what has less than two dimensions, and here what does not decay, and heads: they are no matrices of a
    hidden layer (Jordan et al. 2024).
    """
    settings = recipe.optim
    skipped: Collection[str] = set(getattr(net, "no_weight_decay", set)()) - {"dist_token"}
    names = {parameter: name for name, parameter in net.named_parameters()}
    groups: list[dict[str, Any]] = []
    for decayed in param_groups_weight_decay(
        net,
        settings.weight_decay,
        no_weight_decay_list=skipped,
        fallback_list=_no_matrices(net) if _is_muon(settings) else (),
        fallback_no_weight_decay=_is_muon(settings),
    ):
        by_scale: dict[float, list[Tensor]] = {}
        for parameter in decayed["params"]:
            by_scale.setdefault(scales[names[parameter]], []).append(parameter)
        for scale, parameters in by_scale.items():
            groups.append({**decayed, "params": parameters, "lr_scale": scale})
    fused = True if recipe.compute.fused_optimizer else None  # None: by many parameters at a time, where torch can
    return _of_groups(groups, settings, recipe.peak_lr, fused=fused)


def _of_groups(
    groups: list[dict[str, Any]], settings: Optim, lr: float, *, fused: bool | None = None
) -> torch.optim.Optimizer:
    arguments = parsed(settings.args)
    match settings.name:
        case "sgd":
            return torch.optim.SGD(
                groups, lr=lr, momentum=settings.momentum, nesterov=settings.nesterov, fused=fused, **arguments
            )
        case "lamb":
            return Lamb(groups, lr=lr, betas=settings.betas, eps=settings.eps, **arguments)
        case "adam" | "adamw":
            kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
            return kind(groups, lr=lr, betas=settings.betas, eps=settings.eps, fused=fused, **arguments)
    # groups say their own weight decay
    made: torch.optim.Optimizer = create_optimizer_v2(groups, opt=settings.name, lr=lr, weight_decay=0.0, **arguments)
    return made


def _is_muon(settings: Optim) -> bool:
    return settings.name.endswith("muon")


def _no_matrices(net: nn.Module) -> list[str]:
    """Return the patterns of the names of heads and of the patches' embedding."""
    config = getattr(net, "pretrained_cfg", None) or {}
    heads, first = config.get("classifier") or (), config.get("first_conv") or ()
    layers = [name for part in (heads, first) for name in ((part,) if isinstance(part, str) else part)]
    return [f"{name}.*" for name in layers]


def optimizer_problems(settings: Optim) -> Iterator[Problem]:
    """Yield what is wrong with a recipe's choice of an optimizer and of its arguments."""
    known = [str(name) for name in list_optimizers()]
    if settings.name not in known:
        near = difflib.get_close_matches(settings.name, known, n=NEAR)
        meant = f"did you mean {' or '.join(near)}?" if near else f"timm's are: {', '.join(known)}."
        yield Problem("optim.name", f"--optim.name {settings.name} is none of timm's optimizers; {meant}")
        return
    if reason := _unfit(settings.name):
        yield Problem("optim.name", f"--optim.name {settings.name} {reason}. Take another one.")
        return
    found = list(_argument_problems(settings))
    yield from found
    if found or not settings.args:
        return
    try:
        numbers_kept(settings)
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        yield Problem(
            "optim.args", f"--optim.args {' '.join(settings.args)}: {settings.name} does not take them ({error})."
        )


def _unfit(name: str) -> str:
    """Return why no run can have one of timm's optimizers; empty if it can."""
    info = get_optimizer_info(name)
    if isinstance(info.opt_class, str):  # of a library that timm imports where it is used
        return f"is of {info.opt_class.partition('.')[0]}, which Vitrail does without"
    if info.second_order:
        return "needs second derivatives, which a step does not compute"
    if name.startswith("kron"):
        return "draws random numbers of its own, so that a run would be no function of recipe, data and seed"
    return ""


def _argument_problems(settings: Optim) -> Iterator[Problem]:
    kind: Any = OURS.get(settings.name) or get_optimizer_info(settings.name).opt_class
    known = [name for name in inspect.signature(kind.__init__).parameters if name not in HOSTING]
    own = [name for name in known if not (name in FIELDS and _is_field(name, settings.name))]
    given = [said.partition("=")[0] for said in settings.args]
    for said, name in zip(settings.args, given, strict=True):
        if "=" not in said:
            yield Problem("optim.args", f"--optim.args {said}: write an argument as key=value.")
        elif given.count(name) > 1:
            yield Problem("optim.args", f"--optim.args {said}: {name} is given {given.count(name)} times.")
        elif name in FIELDS and _is_field(name, settings.name):
            yield Problem("optim.args", f"--optim.args {said}: it has a field of its own, --{flag(f'optim.{name}')}.")
        elif name not in own:
            near = difflib.get_close_matches(name, own, n=NEAR)
            meant = f"did you mean {' or '.join(near)}?" if near else f"it takes {', '.join(own) or 'none'}."
            yield Problem("optim.args", f"--optim.args {said}: {settings.name} has no argument {name}; {meant}")


def _is_field(argument: str, name: str) -> bool:
    return not FIELDS[argument] or name in FIELDS[argument]


def parsed(arguments: Collection[str]) -> dict[str, Any]:
    """Return arguments that are written as key=value: numbers, true, false, none, several with commas, or texts."""
    return {name: _value(text) for name, _, text in (said.partition("=") for said in arguments)}


def _value(text: str) -> Any:
    if "," in text:
        return tuple(_value(part) for part in text.split(",") if part)
    if text.lower() in (words := {"true": True, "false": False, "none": None}):
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def needs_whole_parameters(settings: Optim) -> str:
    """Return the field for which an update looks at a parameter as a whole; empty if its numbers are apart."""
    if settings.name not in ELEMENTWISE and settings.name in list_optimizers():
        return "optim.name"
    return "optim.args" if any(name in OF_WHOLE for name in parsed(settings.args)) else ""


def numbers_kept(settings: Optim) -> float:
    """Return how many numbers an optimizer keeps for each of a matrix, measured: 2 for AdamW, 1 for Muon.

    Raises what the optimizer raises for its arguments.
    """
    matrix = nn.Parameter(torch.zeros(KEPT_OF, KEPT_OF))
    matrix.grad = torch.zeros_like(matrix)
    # at a rate that overflows nothing, whatever the recipe's is
    optimizer = _of_groups([{"params": [matrix], "weight_decay": settings.weight_decay}], settings, lr=1e-3)
    optimizer.step()
    state = optimizer.state[matrix].values()
    sizes = [value.numel() * value.itemsize for value in state if isinstance(value, Tensor) and value.ndim]
    return sum(sizes) / (matrix.numel() * matrix.itemsize)


def as_tensor(value: Tensor | float) -> Tensor:
    """Return a part of an optimizer's state as it is saved: a number of Python as a tensor of its widest kind."""
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=NUMBERS[type(value)])


def as_kept(value: Tensor) -> Tensor | float:
    """Return a part of an optimizer's state as it was before `as_tensor`; no optimizer has counters of these types."""
    return value.item() if value.ndim == 0 and value.dtype in NUMBERS.values() else value


def group_counters(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Yield what an optimizer counts in its groups, as (slot/group N, tensor)."""
    for number, group in enumerate(optimizer.param_groups):
        if COUNTER in group:
            yield f"{COUNTER}/group {number}", as_tensor(group[COUNTER])


def restore_group_counters(optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give an optimizer what `group_counters` yielded of it, and return the rest of its state."""
    rest = dict(moments)
    for number, group in enumerate(optimizer.param_groups):
        if (saved := rest.pop(f"{COUNTER}/group {number}", None)) is not None:
            group[COUNTER] = as_kept(saved.clone())
    return rest


def update(optimizer: torch.optim.Optimizer, *, lr: float, clip: float) -> Tensor:
    """Take one optimizer step, forget the gradients, and return their norm before clipping, a scalar on the device."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    set_rates(optimizer, lr)
    optimizer.step()
    optimizer.zero_grad()
    return norm


def set_rates(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group of parameters its share of a rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
