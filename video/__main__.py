"""``python -m video <generate|edit|likelihood|convert>``."""

from video.commands import main

if __name__ == "__main__":
    main()
