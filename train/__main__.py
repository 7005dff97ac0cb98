"""`python -m edgevae.train`, and in a checkout `python -m train`, which hands over to the installed package."""

import sys

try:
    from edgevae.train.cli import main
except ModuleNotFoundError as error:
    if error.name != "edgevae":
        raise
    sys.exit("edgevae is not installed for this Python; in the checkout: pip install --editable '.[train]'")

if __name__ == "__main__":
    main(prog_name="python -m train")
