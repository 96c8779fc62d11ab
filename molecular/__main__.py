"""``python -m molecular <simulate|train|sample>``."""

from molecular.commands import main

if __name__ == "__main__":
    main()
