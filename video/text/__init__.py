"""Prompts as contexts of flows."""

from video.text.encoders import TextEncoder, Words, load_text
from video.text.labels import Labels
from video.text.phrases import Phrasing
from video.text.transformers_text import HiddenStates, TokenEmbeddings

__all__ = ["HiddenStates", "Labels", "Phrasing", "TextEncoder", "TokenEmbeddings", "Words", "load_text"]
