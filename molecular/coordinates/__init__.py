"""Coordinates that flows see, and their exact log-determinants."""

TOKEN_SIZE = 3  # a token is an atom: three numbers
