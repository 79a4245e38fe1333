"""Standard output and standard error that a run outlives: a closed terminal, the end of `| tee`, a full disk."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast


def outlive_output() -> None:
    """Go on without a standard stream from where it takes no more; what counts is in the run's folder."""
    sys.stderr = cast(TextIO, Lasting(sys.stderr))
    sys.stdout = cast(TextIO, Lasting(sys.stdout, "standard output"))


class Lasting:
    """A standard stream that goes quiet where it takes no more; one with a name says so on standard error."""

    def __init__(self, stream: TextIO, name: str = "") -> None:
        self._stream, self._name = stream, name

    def write(self, text: str) -> int:
        """Write, or drop what nobody takes."""
        with self._lasting():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand over what was written, or drop it."""
        with self._lasting():
            self._stream.flush()

    @contextmanager
    def _lasting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # which takes what the stream holds back, too
            os.close(nowhere)
            if self._name:
                print(
                    f"The {self._name} takes no more ({error.strerror}); the run goes on without it.", file=sys.stderr
                )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
