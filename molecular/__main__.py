"""``python -m molecular COMMAND``; ``--help`` lists the commands."""

import sys

try:
    from molecular.commands import main
except ModuleNotFoundError as error:
    sys.exit(f'error: {error.name} is not installed: pip install "nflib[molecular]".')

if __name__ == "__main__":
    main()
