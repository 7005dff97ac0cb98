"""Run as `python -m edgevae`."""

import sys

try:
    from .cli import main
except ModuleNotFoundError as error:
    if error.name != "click":
        raise
    sys.exit("the command line needs click; pip install click")

if __name__ == "__main__":
    main(prog_name="vae-run")
