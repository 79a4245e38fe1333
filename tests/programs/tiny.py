"""The small recipe, as a user would have it in a file of their own."""

from pipeline.run import main
from tests.tiny import TINY

RECIPE = TINY

if __name__ == "__main__":
    main(RECIPE)
