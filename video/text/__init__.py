"""Prompts as contexts of flows."""

from video.text.encoders import T5Text, TextEncoder, Words, load_text, released_prompt

__all__ = ["T5Text", "TextEncoder", "Words", "load_text", "released_prompt"]
