"""The `vitrail` command: the table of its verbs, each of which is a module that is imported when it is asked for."""

import difflib
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from launch.shadowed import shadowed

# what one wants to do, and the verbs that do it: a verb is a line here, and a module of its name with `_` for `-`
PURPOSES: Final[Mapping[str, Mapping[str, str]]] = {
    "Choose a recipe": {
        "recipes": "what there is: model, data, expected accuracy, cost; put one beside you",
        "models": "what can be trained, of timm, torchvision and Vitrail: parameters, input, head",
        "import-timm": "a timm or DeiT command line, or an args.yaml, as a recipe file",
    },
    "Bring data and look at it": {
        "shards": "build, index, verify and show shards",
        "order": "the views of a global batch: virtual rank, slot, sample key, copy",
        "preview": "a picture of the images as the model sees them, original beside views",
    },
    "Get ready for a long run": {
        "plan": "work out a run on a cluster: hosting, steps, bytes, memory, hours, cost",
        "doctor": "try in seconds what a run will need of this machine",
        "drill": "break a minute of your own run, and see what survives",
        "bench": "measure speeds on this machine, side by side: loader, step, recipe",
    },
    "Train": {
        "slurm": "the job script of a recipe, checked by sbatch or submitted",
        "teach": "store a teacher's outputs for every view of a recipe, without training a student",
        "ladder": "fine-tune with several strategies: accuracy, trained parameters, seconds",
    },
    "Use what is trained": {
        "eval": "how good a trained model is on a split: accuracy, calibration, by class",
        "predict": "what a trained model says of image files",
        "report": "one HTML page about one run or several: curves, recipe, data, speed, mistakes",
        "export": "a trained model as timm, ONNX or torch.export have it, and to the hub",
    },
    "Type less": {
        "completion": "what bash, zsh or fish needs to complete verbs and options",
    },
}
VERBS: Final = {name: says for verbs in PURPOSES.values() for name, says in verbs.items()}

HEAD: Final = """\
Vitrail trains vision transformers the DeiT way: a run is a pure function of recipe, data and seed.

Train a recipe:   accelerate launch -m recipes.deit_small --data DIR --output OUT
Every option:     vitrail VERB --help; of a recipe: python -m recipes.deit_small --help
"""


def main() -> None:
    """Entry point of `vitrail`."""
    if hidden := list(shadowed()):  # nothing of ours can be imported then
        print("\n".join(f"vitrail: {sentence}" for sentence in hidden), file=sys.stderr)
        sys.exit(2)
    from shards.errors import BadRequest, VitrailError, harmless

    try:
        code = call(chosen([harmless(word) for word in sys.argv[1:2]]), sys.argv[2:])
    except BadRequest as error:
        code = 2
        print(harmless("\n".join(f"vitrail: {problem}" for problem in error.problems)), file=sys.stderr)
    except BrokenPipeError:  # `| head` has all it wants; what is held back still is for nobody
        code = 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (VitrailError, OSError) as error:
        code = 1
        print(harmless(f"vitrail: {error}"), file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
        print("vitrail: stopped; the same command goes on where it was.", file=sys.stderr)
    sys.exit(code)


def chosen(arguments: list[str]) -> str:
    """Return the verb that a command line begins with; for none, or --help, prints what there is and exits.

    Raises BadRequest for another word.
    """
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(screen())
        sys.exit(0)
    if name not in VERBS:
        from shards.errors import BadRequest

        near = difflib.get_close_matches(name, VERBS, n=1)
        meant = f"; did you mean {near[0]}?" if near else "; `vitrail` alone lists them."
        raise BadRequest.of("verb", f"{name!r} is no verb{meant}")
    return name


def screen() -> str:
    """Return what one can do, by purpose."""
    groups = [
        "\n".join([f"{purpose}:", *(f"  {name:<12} {says}" for name, says in verbs.items())])
        for purpose, verbs in PURPOSES.items()
    ]
    return "\n".join([HEAD, *groups])


def verb_named(name: str) -> Any:
    """Return the type of a verb, or of several with a word each; its module is imported."""
    return import_module(f"launch.{name.replace('-', '_')}").VERB


def call(name: str, arguments: list[str]) -> int:
    """Do what a verb is for, and return its exit code."""
    import tyro

    from launch.verb import RecipeVerb, flags
    from pipeline.request import at_home, misspelt, refuse_control_characters
    from pipeline.tyro_internals import obey_no_color
    from shards.errors import BadRequest

    refuse_control_characters(arguments)
    obey_no_color()
    verb, others = tyro.cli(
        verb_named(name),
        prog=f"vitrail {name}",
        args=arguments,
        return_unknown_args=True,
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    verb = at_home(verb)
    if isinstance(verb, RecipeVerb):
        return verb(others)
    if others:
        raise BadRequest(misspelt(others, flags(verb)))
    code: int = verb()
    return code


if __name__ == "__main__":
    main()
