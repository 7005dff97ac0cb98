"""Run as `python -m export`."""

from export._cli import main

if __name__ == "__main__":
    main(prog_name="vae-export")
