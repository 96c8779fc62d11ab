"""Noisy latents of clips, window after window: new ones from prompts, or those of a clip under other prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nflib.contexts import map_context
from nflib.decoding import Decoder
from nflib.distributions import draw
from nflib.flows import Flow
from video.densities import Densities, clips_generator
from video.rollout import Span, decode_window, rolling


class Window(NamedTuple):
    """Noisy latents of one window of clips.

    Args:
        latents: ``(B, T, c, h, w)``.
        context: that they were decoded under.
        num_known: how many of the frames, the first ones, are of windows before.
        is_anchored: whether the first of these is the clip's first frame.
    """

    latents: Tensor
    context: Any
    num_known: int
    is_anchored: bool = False


class NoisyClips(NamedTuple):
    """Noisy latents of clips: of the frames that were given, and of one window after the other.

    Args:
        start: latents of the given frames, with noise; of all of them, or of the last ones.
        clean: the same without noise.
        windows: one after the other.
        num_frames: latent frames of the whole clips.
        prompts: one a clip.
        given: the given frames themselves, with which clips begin unchanged; None: none.
    """

    start: Tensor
    clean: Tensor
    windows: Iterable[Window]
    num_frames: int
    prompts: Sequence[str]
    given: Tensor | None


class Drawing(Densities):
    """Sampling of a pipeline's flow: noisy latents, decoded from noise window after window."""

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        num_frames: int | None = None,
        given: Tensor | None = None,
        *,
        guidance: float | None = None,
        overlap: int | None = None,
        candidates: int = 1,
        seed: int = 0,
        decoding: Decoder | None = None,
        lazily: bool = False,
    ) -> NoisyClips:
        """Draw the noisy latents of a clip for each prompt, for `finish`.

        Args:
            prompts: one a clip.
            num_frames: latent frames (default: as in training); beyond what the flow has positions for, window after
                window, under the settings' later prompt, or, where there is an anchored one, from the clip's first
                frame and the last `overlap - 1`.
            given: the first frames ``(B or 1, n, C, H, W)``: one for image to video; of more the prompt is the later
                one. Where an autoencoder takes some numbers of frames alone, the last of them are read.
            guidance: weight of classifier-free guidance (default: the settings').
            overlap: latent frames that a window is given (default: the settings'; 0: a single window is allowed).
            candidates: how many of each window are drawn, of which the one is kept whose frames show most of the prompt
                (`prompt_evidence`).
            seed: of the random numbers.
            decoding: how the flow is inverted (default: the pipeline's).
            lazily: whether a window is drawn only when it is asked for, and forgotten then.

        Raises:
            ValueError: settings that do not fit.
        """
        if candidates < 1:
            raise ValueError(f"candidates must be a positive number, got {candidates}.")
        if candidates > 1 and not all(prompts):
            raise ValueError("candidates are compared by what they show of their prompt: give one, or one candidate.")
        num_frames = self.window if num_frames is None else num_frames
        generator = clips_generator(seed)
        given = None if given is None else torch.as_tensor(given)
        clean, start = self._start(prompts, given, generator)
        num_given = start.shape[1]
        self._check_more("latent frames", num_given, num_frames)

        def noise_of(window: Span, flow: Flow) -> Tensor:
            return draw(self.flow.noise(window.num_frames), len(prompts) * candidates, None, generator)

        def begins(window: Span) -> bool:
            return num_given <= 1 and window.done == num_given

        drawn = NoisyClips(start, clean, (), num_frames, prompts, given)
        windows = self._roll_out(drawn, overlap, guidance, decoding, noise_of, begins)
        return drawn._replace(windows=windows if lazily else list(windows))

    @torch.no_grad()
    def redraw(
        self,
        clips: Tensor,
        source_prompts: Sequence[str],
        prompts: Sequence[str],
        *,
        keep_frames: int = 0,
        strength: float = 0.0,
        guidance: float | None = None,
        overlap: int | None = None,
        seed: int = 0,
        decoding: Decoder | None = None,
    ) -> NoisyClips:
        """Noisy latents of clips as they would be under other prompts, for `finish`: an edit by re-encoding.

        ``x' = f⁻¹(z'; prompt)`` of ``z' = sqrt(1 - strength²) z + strength ε``, where ``z = f(x; source prompt)`` is
        the clip's own noise and ε is new: z' of samples are standard normal, as samples of the other prompt take.

        Args:
            clips: ``(B, T, C, H, W)``, one for each prompt, or one for all; longer ones are re-encoded window after
                window.
            source_prompts: what the clips are, one for each prompt.
            prompts: what they are to become.
            keep_frames: how many latent frames, the first ones, stay as they are.
            strength: share of new noise in 0 … 1: 0 with the same prompt gives the clip back, but for noise and
                autoencoder; 1 a new clip.
            guidance: as for `draw`, of both maps, to noise and back.
            overlap: as for `draw`.
            seed: as for `draw`.
            decoding: as for `draw`.

        Raises:
            ValueError: settings that do not fit.
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"strength, the share of new noise, must lie in 0 … 1, got {strength}.")
        if not prompts or len(source_prompts) != len(prompts):
            raise ValueError(f"an edit takes a source prompt for each prompt, got {len(source_prompts)} of them.")
        generator, clips = clips_generator(seed), torch.as_tensor(clips)
        if clips.dim() == 5:  # here all frames count, where a continuation may read the last ones alone
            self.latents.latent_shape((clips.shape[1], *self.settings.clip_shape[1:]))
        clean, noisy = self._start(prompts, clips, generator)
        num_frames = noisy.shape[1]
        if not 0 <= keep_frames < num_frames:
            raise ValueError(f"keep_frames must lie in 0 … {num_frames - 1}, fewer than the clip's, got {keep_frames}.")

        def begins(window: Span) -> bool:
            return window.first == 0

        def noise_of(window: Span, flow: Flow) -> Tensor:
            source = self.condition(source_prompts, None if begins(window) else window, is_image=num_frames == 1)
            noise, _ = flow._transform(window.of(noisy), flow._embedded(source))
            new = torch.randn(noise.shape, generator=generator, device=generator.device).to(noise)
            return math.sqrt(1 - strength**2) * noise + strength * new

        drawn = NoisyClips(
            noisy[:, :keep_frames],
            clean[:, :keep_frames],
            (),
            num_frames,
            prompts,
            clips[:, : self._num_frames(keep_frames)] if keep_frames else None,
        )
        windows = self._roll_out(drawn, overlap, guidance, decoding, noise_of, begins)
        return drawn._replace(windows=list(windows))

    def _roll_out(
        self,
        drawn: NoisyClips,
        overlap: int | None,
        guidance: float | None,
        decoding: Decoder | None,
        noise_of: Callable[[Span, Flow], Tensor],
        begins: Callable[[Span], bool],
    ) -> Iterator[Window]:
        """The windows of clips that begin with `drawn.start`, decoded from the noise that noise_of gives each of them.

        noise_of: tokens of one clip for each prompt, or of several candidates. begins: whether a window has the prompt
        as it stands.
        """
        prompts, is_image = drawn.prompts, drawn.num_frames == 1
        guidance = self.settings.guidance if guidance is None else guidance
        made: list[Window] = []

        def make(span: Span, known: Tensor) -> Tensor:
            context = self.condition(prompts, None if begins(span) else span, is_image=is_image)
            flow = self._guided(guidance, span, is_image)
            noise = noise_of(span, flow)
            count = len(noise) // len(prompts)
            rows, past = (map_context(lambda part: part.repeat_interleave(count, 0), part) for part in (context, known))
            latents = decode_window(flow, noise, rows, past, decoding or self.decoding)
            if count > 1:
                latents = latents.unflatten(0, (len(prompts), count))
                evidence = self.prompt_evidence(latents[:, :, span.num_known :], prompts, is_image=is_image)
                # A candidate of which a density overflowed is none.
                best = evidence.where(evidence.isfinite(), -math.inf).argmax(1)
                latents = latents[torch.arange(len(prompts)), best]
            made.append(Window(latents, context, span.num_known, span.is_anchored))
            return latents

        windows = self._windows(drawn.num_frames, drawn.start.shape[1], overlap)
        return (made.pop() for _ in rolling(drawn.start, windows, make, self.window))

    def _check_more(self, frames: str, num_given: int, wanted: int) -> None:
        """Raise ValueError unless there is something to draw after the given frames."""
        if num_given and self.window == 1:
            raise ValueError("this model makes images, of one frame each, and continues nothing: give no frames.")
        if wanted <= num_given:
            raise ValueError(f"{num_given} {frames} are given: ask for more than that, got {wanted}.")

    def _start(self, prompts: Sequence[str], given: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents ``(B, n, c, h, w)`` of the given frames, without and with noise, one clip for each prompt."""
        if not prompts:
            raise ValueError("there is no prompt; give at least one, which may be empty.")
        if given is None:
            none = self._own(torch.zeros(len(prompts), 0, *self.flow.frame_shape))
            return none, none
        if given.dim() != 5 or len(given) not in (1, len(prompts)) or given.shape[2:] != self.settings.clip_shape[1:]:
            raise ValueError(
                f"given frames must have shape (1 or {len(prompts)}, frames, "
                f"{', '.join(map(str, self.settings.clip_shape[1:]))}), got {tuple(given.shape)}."
            )
        read = given[:, -self._num_frames(self._num_latent_frames(given.shape[1])) :]
        clean = self._latents_of(read)
        clean = clean.expand(len(prompts), *clean.shape[1:])
        return clean, self.settings.noisy(clean, generator)

    @property
    def can_be_guided(self) -> bool:
        """Whether the flow takes classifier-free guidance: it is conditioned on something, by affine maps."""
        try:
            self._guided(1.0, Span(0, 0, 1), is_image=self.window == 1)
        except ValueError:
            return False
        return True

    def _guided(self, guidance: float, window: Span, is_image: bool) -> Flow:
        if not guidance:
            return self.flow
        unconditional = self.settings.anchored_prompt("") if window.is_anchored else ""
        context = self.condition([unconditional], is_image=is_image)
        if context is None:
            raise ValueError("this model is conditioned on nothing, so there is nothing to guide.")
        return self.flow.guided(self.flow.guidance(guidance), context[0])
