"""``python -m molecular <simulate|train|sample>``."""

from molecular.cli import main

if __name__ == "__main__":
    main()
