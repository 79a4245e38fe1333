"""The small recipe, of whose virtual ranks every process hosts the first alone."""

from pipeline import hosting
from pipeline.run import main
from tests.tiny import HERE

RECIPE = HERE

if __name__ == "__main__":
    hosting.hosted = lambda virtual_ranks, processes, process: range(1)
    main(RECIPE)
