"""`python -m edgevae.export`, and in a checkout `python -m export`, which hands over to the installed package."""

import sys

try:
    from edgevae.export.cli import main
except ModuleNotFoundError as error:
    if error.name != "edgevae":
        raise
    sys.exit("edgevae is not installed for this Python; in the checkout: pip install --editable '.[export]'")

if __name__ == "__main__":
    main(prog_name="vae-export")
