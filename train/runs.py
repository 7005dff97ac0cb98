"""Run as `python -m train.runs`: lists runs, and compares two."""

from ._runs._cli import main

if __name__ == "__main__":
    main(prog_name="python -m train.runs")
