"""What a run trains: a model, the engine that shares it among processes, and the moving averages of its weights."""

import copy
from collections.abc import Iterator, Mapping

from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.config import Recipe
from pipeline.hosting import Hosting
from pipeline.model.build import build_student, template
from pipeline.model.prefix import Cut
from pipeline.update.ema import Ema
from pipeline.update.engine import ENGINES, Replicated

Groups = Mapping[str, Mapping[str, Tensor]]  # whole tensors by group (model, optimizer, ema, ...) and name


class Weights:
    """The weights of a run, their averages, and the state of their optimizer.

    `tensors` is all of it, and what is given to `build` again makes the same weights on any hosting.
    """

    def __init__(self, net: nn.Module, engine: Replicated, averages: Mapping[str, Ema], empty: nn.Module) -> None:
        self.net = net  # the timm model, of whose weights a process may hold a part
        self.engine = engine
        self.averages = averages  # by name: ema, and ema-DECAY for each further one
        self._empty = empty  # the model in evaluation mode, without memory for its weights

    @classmethod
    def build(
        cls,
        recipe: Recipe,
        hosting: Hosting,
        accelerator: Accelerator,
        saved: Groups | None,
        *,
        head_alone: bool,
        cut: Cut | None = None,
    ) -> "Weights":
        """Return a recipe's weights at its start, or those that were saved."""
        net = build_student(recipe, head_alone=head_alone, start=saved is None)
        if saved:
            net.load_state_dict(saved["model"])
        net.to(accelerator.device)
        empty = template(net)
        engine = ENGINES[hosting.engine](net, recipe, hosting, accelerator, cut)
        averages = {
            name: Ema(engine.local(), decay, warmup=recipe.ema.warmup) for name, decay in recipe.ema.decays.items()
        }
        if saved:
            engine.restore_moments(saved["optimizer"])
            for group, average in averages.items():
                average.tensors = {name: engine.part(name, whole) for name, whole in saved[group].items()}
        return cls(net, engine, averages, empty)

    def update(self, lr: float, clip: float, step: int) -> Tensor:
        """Take the optimizer's step and move the averages, `step` counted from 0; return the gradient's norm."""
        norm = self.engine.update(lr, clip)
        local = self.engine.local() if self.averages else {}
        for average in self.averages.values():
            average.update(local, step + 1)
        return norm

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that `tensors` yields."""
        return ("model", "optimizer", *self.averages)

    def tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        """Yield all that a checkpoint must hold: group, name and whole tensor.

        All processes must ask. Where no engine spreads them, they are the run's own, and change with the next step.
        """
        yield from self._whole()
        for name, moment in self.engine.moments():
            yield "optimizer", name, moment

    def nets(self) -> dict[str, nn.Module]:
        """Return the model with its weights and with each average, whole, as {"raw": ..., "ema": ...}, to evaluate.

        All processes must ask. Where an engine spreads the weights, each gathers them for as long as this lives.
        """
        weights: dict[str, dict[str, Tensor]] = {}
        for group, name, tensor in self._whole():
            weights.setdefault(group, {})[name] = tensor
        return self.nets_of(weights)

    def nets_of(self, groups: Groups) -> dict[str, nn.Module]:
        """Return the model with the weights of each group of a checkpoint, as `nets` does; with none of them copied."""
        nets = {group: copy.deepcopy(self._empty) for group in ("model", *self.averages)}
        for group, net in nets.items():
            net.load_state_dict(groups[group], assign=True)
        return {"raw" if group == "model" else group: net for group, net in nets.items()}

    def _whole(self) -> Iterator[tuple[str, str, Tensor]]:
        held = {"model": self.engine.local()} | {name: average.tensors for name, average in self.averages.items()}
        for group, tensors in held.items():
            for name, local in tensors.items():
                yield group, name, self.engine.whole(name, local)
