"""How the prompts of released models are phrased."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phrasing:
    """How a model's prompts are phrased: what they say beside the caption, as in its training.

    Calling it phrases a prompt, an empty one as well: frame_rate is in frames a second, 0 for an image, noise the
    standard deviation on the latents, and the aspect ratio such as "16:9".

    Args:
        frame_rate: whether prompts name the frame rate, or that it is an image.
        noise: whether they name the noise on the latents.
        aspect: whether they name the aspect ratio.
        chat: whether they are the turn of a user who asks a language model.
        denoiser: whether they name the noise to the learned denoiser in any case.

    >>> Phrasing(frame_rate=True, noise=True)("a cat", frame_rate=16, noise=0.3)
    'Noise Level 300:\\nA video with 16 fps:\\na cat\\n'
    """

    frame_rate: bool = False
    noise: bool = False
    aspect: bool = False
    chat: bool = False
    denoiser: bool = False

    def __call__(self, prompt: str, *, frame_rate: int = 0, noise: float = 0.0, aspect_ratio: str | None = None) -> str:
        is_video = self.frame_rate and frame_rate > 0
        if self.frame_rate:
            prompt = f"A video with {frame_rate} fps:\n{prompt}\n" if is_video else f"An image:\n{prompt}\n"
        if self.noise:
            prompt = f"Noise Level {int(noise * 1000)}:\n{prompt}"
        if self.aspect and aspect_ratio is not None:
            prompt = f"{prompt}\n in a {aspect_ratio} aspect ratio.\n"
        if self.chat:
            wanted = "a video" if is_video else "an image"
            request = f"Please generate {wanted} about: {prompt}"
            prompt = f"<start_of_turn>user\n{request}<end_of_turn>\n<start_of_turn>model\n"
        return prompt
