"""`vitrail completion`: what a shell needs to complete the verbs and their options; tyro makes it."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Union

import tyro

from launch.cli import VERBS, verb_named
from launch.verb import Verb


@dataclass(frozen=True, kw_only=True)
class Completion(Verb):
    """Print the script that makes a shell complete the verbs of `vitrail` and their options.

    bash reads ~/.local/share/bash-completion/completions/vitrail, fish ~/.config/fish/completions/vitrail.fish, and zsh
    a file _vitrail in a folder of its $fpath. Options of recipes are not among them.

    Example: vitrail completion bash > ~/.local/share/bash-completion/completions/vitrail
    """

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """The shell"""

    def __call__(self) -> int:
        """Print it."""
        verbs = tuple(Annotated[verb_named(name), tyro.conf.subcommand(name)] for name in VERBS)
        all_verbs: Any = Union[verbs]  # noqa: UP007 - of types that are known only here
        written = ["--tyro-write-completion", self.shell, "-"]
        with suppress(SystemExit):  # tyro's way to say that it is done
            tyro.cli(all_verbs, prog="vitrail", args=written, config=(tyro.conf.OmitSubcommandPrefixes,))
        return 0


VERB: Final = Completion
