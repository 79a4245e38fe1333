"""The `vitrail` command: the table of its verbs, each of which is a module that is imported when it is asked for."""

import argparse
import difflib
import os
import sys
from importlib import import_module
from typing import Final

from launch.shadowed import shadowed

VERBS: Final = {
    "shards": "build, index, verify and show shards",
    "models": "what can be trained, of timm, torchvision and Vitrail: parameters, input, head",
    "order": "the views of a global batch: virtual rank, slot, sample key, copy",
    "preview": "a picture of the images as the model sees them, original beside views",
    "teach": "store a teacher's outputs for every view of a recipe, without training a student",
    "ladder": "fine-tune with several strategies: accuracy, trained parameters, seconds",
    "plan": "work out a run on a cluster: hosting, steps, bytes, memory, hours, cost",
    "doctor": "try in seconds what a run will need of this machine",
    "drill": "break a minute of your own run, and see what survives",
    "bench": "measure speeds on this machine, side by side: loader, step, recipe",
    "report": "one HTML page about one run or several: curves, recipe, data, speed, mistakes",
    "slurm": "the job script of a recipe, checked by sbatch or submitted",
}


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
    """Return the verb that a command line begins with; exits for --help (0) and for none or another (2)."""
    verbs = "\n".join(f"  {name:<9} {says}" for name, says in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="vitrail",
        usage="vitrail VERB ... (vitrail VERB --help: its options)",
        description="DeiT-style training of vision transformers; recipes are trained by accelerate launch.",
        epilog=f"verbs:\n{verbs}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", help=argparse.SUPPRESS)
    name: str = parser.parse_args(arguments).verb
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, n=1)
        parser.error(f"{name!r} is no verb" + (f"; did you mean {near[0]}?" if near else "; see vitrail --help."))
    return name


def call(name: str, arguments: list[str]) -> int:
    """Do what a verb is for, and return its exit code."""
    import tyro

    from launch.verb import RecipeVerb, flags
    from pipeline.request import at_home, misspelt, refuse_control_characters
    from shards.errors import BadRequest

    refuse_control_characters(arguments)
    module = import_module(f"launch.{name}")
    verb, others = tyro.cli(
        module.VERB,
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
