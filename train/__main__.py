"""Run as `python -m train`."""

from train._cli import main

if __name__ == "__main__":
    main(prog_name="python -m train")
