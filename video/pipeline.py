"""A flow with the autoencoder and text encoder that it was trained with: encode, condition, draw, denoise, decode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nflib.decoding import Decoder
from video.drawing import Drawing, NoisyClips
from video.flows.denoiser import Denoiser
from video.pipeline_settings import DENOISING
from video.rollout import Recent, Span, rolling


class Pipeline(Drawing):
    """A flow of images or clips with its autoencoder and text encoder: clips from prompts, and densities of clips.

    Clips are ``(B, T, C, H, W)`` in -1 … 1; an image is a clip of one frame. Every step can be called by itself:
    `encode` (clips to noisy latents), `condition` (prompts to contexts), `draw` and `redraw` (noisy latents, window
    after window), `denoise` and `decode`, or `finish` for both. `stream` makes a clip piece by piece, in the memory of
    a window. `save` and `load` keep all parts in one folder.

    Args:
        flow: of latents with noise, a `STARFlowV`, a `STARFlow`, or another flow of images, such as a `TARFlow`;
            the attribute `decoding` is how it is inverted where nothing else is said.
        latents: the autoencoder; `video.latents.Pixels` for a flow of pixels.
        text: the encoder of prompts; `video.text.Labels()` for a flow without prompts.
        settings: sizes, noise, frame rate and defaults.

    >>> from video import Pipeline
    >>> pipeline = Pipeline.load("digits")  # shipped
    >>> pipeline.generate(["seven", "two"], seed=0).shape
    torch.Size([2, 1, 1, 8, 8])
    """

    @torch.no_grad()
    def denoise(self, latents: Tensor, context: Any, how: str | None = None) -> Tensor:
        """Latents of one window without their noise.

        Args:
            latents: with noise, ``(B, t, c, h, w)``.
            context: of `condition`.
            how: "score" (Tweedie's step along the flow's own score), "learned" (the flow's denoiser) or "none"
                (default: the settings').

        Raises:
            ValueError: another way, or no denoiser.
        """
        how = self.check_denoising(how)
        if how == "none":
            return latents
        if how == "score":
            return latents + self.settings.noise**2 * self.flow.score(latents, context)
        return self._denoiser.denoise(latents, context)

    @torch.no_grad()
    def finish(self, drawn: NoisyClips, denoise: str | None = None) -> Tensor:
        """Clips ``(B, T, C, H, W)`` of the noisy latents that `draw` or `redraw` gave: denoised and decoded.

        Args:
            drawn: by `draw` or `redraw`; clips begin with the frames that these were given.
            denoise: how noise is taken off, as for `denoise`.

        Raises:
            ValueError: another way of denoising, or clips that are not finite.
        """
        return torch.cat(list(self._finished(drawn, denoise)), dim=1)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        num_frames: int | None = None,
        given: Tensor | None = None,
        *,
        denoise: str | None = None,
        guidance: float | None = None,
        overlap: int | None = None,
        candidates: int = 1,
        seed: int = 0,
        decoding: Decoder | None = None,
    ) -> Tensor:
        """Generate a clip for each prompt, which begins with the given frames, if any.

        Args:
            prompts: one a clip; an empty one for none.
            num_frames: of the clips, those given included (default: as in training, and as many more as are continued).
            given: the first frames ``(B or 1, n, C, H, W)`` in -1 … 1: one for image to video, more to continue a clip.
            denoise: how noise is taken off, as for `denoise` (default: the settings').
            guidance: weight of classifier-free guidance (default: the settings').
            overlap: latent frames that each window after the first is given (default: the settings').
            candidates: how many of each window are drawn, of which the one that shows most of its prompt is kept.
            seed: of the random numbers.
            decoding: how the flow is inverted (default: the pipeline's).

        Returns:
            ``(B, num_frames, C, H, W)`` in -1 … 1.

        Raises:
            ValueError: settings that do not fit, or clips that are not finite.
        """
        pieces = self.stream(
            prompts,
            num_frames,
            given,
            denoise=denoise,
            guidance=guidance,
            overlap=overlap,
            candidates=candidates,
            seed=seed,
            decoding=decoding,
        )
        return torch.cat(list(pieces), dim=1)

    @torch.no_grad()
    def stream(
        self,
        prompts: Sequence[str],
        num_frames: int | None = None,
        given: Tensor | None = None,
        *,
        denoise: str | None = None,
        guidance: float | None = None,
        overlap: int | None = None,
        candidates: int = 1,
        seed: int = 0,
        decoding: Decoder | None = None,
    ) -> Iterator[Tensor]:
        """Generate clips piece by piece, frames after frames, in memory that does not grow with the clips.

        Arguments and errors are those of `generate`.

        Returns:
            An iterator of ``(B, frames, C, H, W)``, which together are what `generate` gives.
        """
        self.check_denoising(denoise)
        num_given = 0 if given is None or given.ndim != 5 else given.shape[1]
        if num_frames is None:
            num_frames = self.settings.clip_shape[0] + (num_given if num_given > 1 else 0)
        if num_frames < 1:
            raise ValueError(f"there are no clips of {num_frames} frames; ask for one or more.")
        self._check_more("frames", num_given, num_frames)  # `draw` counts latent ones
        unread = num_given - self._num_frames(self._num_latent_frames(num_given)) if num_given else 0
        # As many latents as hold the frames, of which the last may be too many.
        needed = self._num_latent_frames(num_frames - unread + self.latents.temporal_factor - 1)
        left = num_frames
        drawn = self.draw(
            prompts,
            needed,
            given,
            guidance=guidance,
            overlap=overlap,
            candidates=candidates,
            seed=seed,
            decoding=decoding,
            lazily=True,
        )
        for piece in self._finished(drawn, denoise):
            yield piece[:, :left]
            left -= min(piece.shape[1], left)

    @torch.no_grad()
    def edit(
        self,
        clips: Tensor,
        source_prompts: Sequence[str],
        prompts: Sequence[str],
        *,
        keep_frames: int = 0,
        strength: float = 0.0,
        denoise: str | None = None,
        guidance: float | None = None,
        overlap: int | None = None,
        seed: int = 0,
        decoding: Decoder | None = None,
    ) -> Tensor:
        """Edit clips by their prompts: the clip's own noise under one prompt, decoded under another.

        Args:
            clips: ``(B, T, C, H, W)`` in -1 … 1, one for each prompt, or one for all.
            source_prompts: what the clips are, one for each prompt.
            prompts: what they are to become.
            keep_frames: how many latent frames, the first ones, stay as they are.
            strength: share of new noise in 0 … 1; 1 gives a new clip.
            denoise: how noise is taken off, as for `denoise` (default: the settings').
            guidance: weight of classifier-free guidance (default: the settings').
            overlap: latent frames that each window after the first is given (default: the settings').
            seed: of the random numbers.
            decoding: how the flow is inverted (default: the pipeline's).

        Returns:
            ``(B, T, C, H, W)`` in -1 … 1.

        Raises:
            ValueError: settings that do not fit, or clips that are not finite.
        """
        self.check_denoising(denoise)
        drawn = self.redraw(
            clips,
            source_prompts,
            prompts,
            keep_frames=keep_frames,
            strength=strength,
            guidance=guidance,
            overlap=overlap,
            seed=seed,
            decoding=decoding,
        )
        return self.finish(drawn, denoise)

    def check_denoising(self, how: str | None) -> str:
        """The way of denoising, None being the settings'; raises ValueError for one that this model does not have."""
        how = self.settings.denoise if how is None else how
        if how not in DENOISING:
            raise ValueError(f"denoise must be one of {', '.join(DENOISING)}, got {how!r}.")
        if how == "learned":
            self._denoiser  # noqa: B018
        return how

    @property
    def _denoiser(self) -> Denoiser:
        denoiser: Denoiser | None = self.flow.denoiser
        if denoiser is None:
            raise ValueError('this model has no learned denoiser; choose denoise "score" or "none".')
        return denoiser

    def _clean(self, drawn: NoisyClips, how: str) -> Iterator[Tensor]:
        """Latents without noise: of the given frames, then piece by piece of the others."""
        if drawn.clean.shape[1]:
            yield drawn.clean
        if how == "learned":
            yield from self._clean_chunks(drawn)
        else:
            for window in drawn.windows:
                yield self.denoise(window.latents, window.context, how)[:, window.num_known :]

    def _clean_chunks(self, drawn: NoisyClips) -> Iterator[Tensor]:
        """What the learned denoiser makes, chunk after chunk, each read after the frames that came before it.

        As public samplers do it: what the last chunk wrote is read without its noise, under the prompts that tell of
        the noise.
        """
        overlap, num_given = self._denoiser.chunk_overlap, drawn.start.shape[1]
        noisy, windows = Recent(drawn.start, 2 * self.window), iter(drawn.windows)
        phrasing = self.settings.phrasing
        told = self.with_settings(phrasing=replace(phrasing, noise=phrasing.noise or phrasing.denoiser))

        def make(span: Span, known: Tensor) -> Tensor:
            while noisy.stop < span.stop:
                window = next(windows)
                noisy.add(window.latents[:, window.num_known :])
            latents = torch.cat([known, noisy.of(span)[:, span.num_known :]], dim=1)
            context = told.condition(drawn.prompts, span if span.first else None, is_image=drawn.num_frames == 1)
            return self.denoise(latents, context, "learned")

        overlap = self.window - 1 if overlap is None else min(overlap, self.window - 1)
        chunks = self._windows(drawn.num_frames, 0, overlap)
        done = 0
        for piece in rolling(drawn.start[:, :0], chunks, make, self.window):
            new = piece[:, max(num_given - done, 0) :]
            done += piece.shape[1]
            if new.shape[1]:
                yield new

    def _finished(self, drawn: NoisyClips, denoise: str | None) -> Iterator[Tensor]:
        """`finish`, piece by piece."""
        how = self.check_denoising(denoise)
        unseen = self._num_frames(drawn.start.shape[1])
        is_first = True
        for clips in self._decoded(self._clean(drawn, how)):
            if is_first and drawn.given is not None:
                yield drawn.given.expand(len(clips), *drawn.given.shape[1:]).to(clips)
            new, is_first = clips[:, unseen:], False
            unseen -= min(unseen, clips.shape[1])
            if new.shape[1]:
                yield new
