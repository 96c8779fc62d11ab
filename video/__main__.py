"""``python -m video COMMAND``; ``--help`` lists the commands."""

import sys

try:
    from video.commands import main
except ModuleNotFoundError as error:
    sys.exit(f'error: {error.name} is not installed: pip install "nflib[video]".')

if __name__ == "__main__":
    main()
