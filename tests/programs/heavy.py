"""A program whose own imports take long, which spreads work: what each process imported is printed, a line each."""

import sys
import wave  # stands for torch: nothing else imports it

from shards.parallel import mapping


def main() -> None:
    assert wave
    with mapping(2) as spread:
        for line in spread(eval, ["sorted(__import__('sys').modules)"] * 2):
            print(*line)


if __name__ == "__main__":
    main()
    assert sys.modules["__main__"].main is main
