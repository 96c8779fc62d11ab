"""``python -m video <train|train_autoencoder|generate|likelihood|evaluate>``."""

from video.cli import main

if __name__ == "__main__":
    main()
