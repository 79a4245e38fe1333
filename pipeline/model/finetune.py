"""Fine-tuning strategies: which parameters of a model are trained, and at which share of the learning rate.

What is not trained has no gradients, no optimizer state, and runs in evaluation mode; where it is the first part of the
network, nothing is kept of it for the backward pass either.
"""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, Final

from timm.models import group_parameters
from torch import Tensor, nn

from pipeline.config import Finetune
from shards.errors import BadRequest

Names = set[str]


def freeze(net: nn.Module, settings: Finetune, *, head_alone: bool = False) -> None:
    """Leave gradients to what the strategy trains, or to the head alone.

    Raises BadRequest where the strategy does not fit the model.
    """
    kind, _, amount = settings.strategy.partition("-")
    try:
        trained = _head(net) if head_alone else STRATEGIES[kind](net, amount)
    except (KeyError, AttributeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise BadRequest.of(
            "finetune.strategy", f"--finetune.strategy {settings.strategy} does not fit {type(net).__name__}: {error}."
        ) from error
    if settings.norm and not head_alone:
        trained |= _under(net, "norm", "fc_norm")
    for name, parameter in net.named_parameters():
        # what a model itself keeps fixed stays so
        parameter.requires_grad_(parameter.requires_grad and name in trained)


def frozen_modules(net: nn.Module) -> list[nn.Module]:
    """Return the modules that have parameters of which none is trained."""
    return [
        module
        for module in net.modules()
        if any(True for _ in module.parameters()) and not any(p.requires_grad for p in module.parameters())
    ]


def _full(net: nn.Module, amount: str) -> Names:
    return {name for name, _ in net.named_parameters()}


def _head(net: nn.Module, amount: str = "") -> Names:
    return _under(net, *classifier_names(net))


def _classifier(net: nn.Module, amount: str) -> Names:
    """All layers of the head, the new last one among them: of VGG three, two of which know ImageNet."""
    return _under(net, "pre_logits", *{name.partition(".")[0] for name in classifier_names(net)})  # timm's VGG


def _partial(net: Any, amount: str) -> Names:
    """The last K blocks and the head; a half is the MLP of a block (MAE, 2111.06377, section 4.3)."""
    count = Fraction(amount)
    halves = count * 2
    if halves.denominator != 1 or not 0 < count <= len(net.blocks):
        raise ValueError(f"K goes in halves, up to its {len(net.blocks)} blocks")
    whole = int(count)
    modules = [f"blocks.{number}" for number in range(len(net.blocks) - whole, len(net.blocks))]
    if halves % 2:
        modules.append(f"blocks.{len(net.blocks) - whole - 1}.mlp")
    return _under(net, *modules) | _head(net)


def _attention(net: nn.Module, amount: str) -> Names:
    """The attention layers, the position embeddings and the head (Touvron et al. 2022, 2203.09795; deit/main.py)."""
    return {name for name, _ in net.named_parameters() if ".attn." in name or name == "pos_embed"} | _head(net)


STRATEGIES: Final[Mapping[str, Callable[[nn.Module, str], Names]]] = {
    "full": _full,
    "gradual": _full,  # after the head alone
    "linear": _head,
    "classifier": _classifier,
    "partial": _partial,
    "attention": _attention,
}


def rate_scales(net: Any, settings: Finetune) -> dict[str, float]:
    """Return the share of the learning rate of each parameter, by name.

    Raises BadRequest where the model has no such layers.
    """
    try:
        return RATES[settings.rates](net, settings.decay)
    except AttributeError as error:
        raise BadRequest.of(
            "finetune.rates", f"--finetune.rates {settings.rates} does not fit {type(net).__name__}: {error}."
        ) from error


def _same(net: nn.Module, decay: float) -> dict[str, float]:
    return {name: 1.0 for name, _ in net.named_parameters()}


def _geometric(net: Any, decay: float) -> dict[str, float]:
    """By block, `decay` of the next one's (BEiT, 2106.08254): stem, blocks, head, as timm groups them."""
    layers = group_parameters(net, net.group_matcher(coarse=False), reverse=True)
    last = max(layers.values())
    return {name: decay ** (last - layer) for name, layer in layers.items()}


def _divided(net: nn.Module, decay: float) -> dict[str, float]:
    """By top-level part, 1/`decay` of the next one's: of a ResNet conv1, bn1, layer1 to 4, fc."""
    parts = [name for name, part in net.named_children() if any(True for _ in part.parameters())]
    scales = {part: decay ** -(len(parts) - 1 - number) for number, part in enumerate(parts)}
    return {name: scales.get(name.partition(".")[0], scales[parts[0]]) for name, _ in net.named_parameters()}


def _linear(net: Any, decay: float) -> dict[str, float]:
    """By layer of `features`, rising in equal steps from `decay` to the rate itself, which all after them have."""
    layers = len(net.features)
    scales = {}
    for name, _ in net.named_parameters():
        part, _, rest = name.partition(".")
        layer = int(rest.partition(".")[0]) if part == "features" else layers
        scales[name] = decay + (1 - decay) * layer / layers
    return scales


RATES: Final[Mapping[str, Callable[[nn.Module, float], dict[str, float]]]] = {
    "same": _same,
    "geometric": _geometric,
    "divided": _divided,
    "linear": _linear,
}


def classifier_names(net: Any) -> tuple[str, ...]:
    """Return the names of a model's heads."""
    names = net.pretrained_cfg["classifier"] or ()
    return (names,) if isinstance(names, str) else tuple(names)


class NormedHead(nn.Linear):
    """A head that normalises its features by batch norm without affine, so that one rate fits any backbone.

    Source: MAE's main_linprobe.py. It is one linear function once it is learnt: see `fold_head_norm`.
    """

    def __init__(self, head: nn.Linear) -> None:
        nn.Module.__init__(self)  # takes the head's own tensors instead of drawing others
        self.__dict__.update({name: value for name, value in vars(head).items() if not name.startswith("_")})
        self.weight, self.bias = head.weight, head.bias
        self.norm = nn.BatchNorm1d(head.in_features, eps=1e-6, affine=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, classes] of features [B, width]."""
        return super().forward(self.norm(features))


def add_head_norm(net: nn.Module) -> None:
    """Put a batch norm before a model's heads.  Raises BadRequest where a head is not a linear layer."""
    for name in classifier_names(net):
        head = net.get_submodule(name)
        if not isinstance(head, nn.Linear):
            raise BadRequest.of(
                "finetune.head_norm",
                f"--finetune.head-norm does not fit {type(net).__name__}: its head is no linear layer.",
            )
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, NormedHead(head))


def fold_head_norm(net: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's tensors with each head's batch norm folded into it, so that they fit the model timm knows."""
    folded = dict(tensors)
    for name in classifier_names(net):
        head = net.get_submodule(name)
        if isinstance(head, NormedHead):
            mean, variance = (folded.pop(f"{name}.norm.{part}") for part in ("running_mean", "running_var"))
            del folded[f"{name}.norm.num_batches_tracked"]
            folded[f"{name}.weight"] = weight = folded[f"{name}.weight"] * (variance + head.norm.eps).rsqrt()
            folded[f"{name}.bias"] = folded[f"{name}.bias"] - weight @ mean
    return folded


def parameters_by_part(net: nn.Module) -> dict[str, tuple[int, int]]:
    """Return how many parameters each top-level part has, trained and in all."""
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in net.named_parameters():
        part = name.partition(".")[0]
        trained, total = counts.get(part, (0, 0))
        counts[part] = trained + parameter.numel() * parameter.requires_grad, total + parameter.numel()
    return counts


def _under(net: nn.Module, *modules: str) -> Names:
    return {name for name, _ in net.named_parameters() if any(f"{name}.".startswith(f"{part}.") for part in modules)}
