"""A flow with the autoencoder and text encoder that it was trained with: encode, condition, draw, denoise, decode."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nflib.contexts import map_context
from nflib.decoding import Decoder
from nflib.distributions import draw
from nflib.flows import Flow
from nflib.io import complete_folder
from video.flows.decoding import FramesAtOnce
from video.flows.denoiser import UNIT, Denoiser
from video.flows.images import as_clips
from video.latents.latents import Latents, Pixels
from video.latents.load import load_latents
from video.pipeline_settings import DENOISING, SETTINGS, PipelineSettings, aspect_size
from video.rollout import Recent, Span, decode_window, rolling, spans
from video.text.encoders import TextEncoder, load_text

SHIPPED = Path(__file__).parent / "shipped" / "moving-digits"
# Latents have deviation 1.
LARGEST_LATENT = 1000.0


class Window(NamedTuple):
    """Noisy latents ``(B, T, c, h, w)`` of a window, given which context; its first num_known frames are older ones.

    is_anchored: whether the first of them is the clip's first frame.
    """

    latents: Tensor
    context: Any
    num_known: int
    is_anchored: bool = False


class NoisyClips(NamedTuple):
    """Noisy latents of clips: of the frames that were given, and of one window after the other.

    start, clean: latents of the given frames with and without noise. num_frames: of the whole clips' latents. prompts:
    of the clips. given: the frames themselves, the last of which are those that the latents are of; they come back as
    they are.
    """

    start: Tensor
    clean: Tensor
    windows: Iterable[Window]
    num_frames: int
    prompts: Sequence[str]
    given: Tensor | None


class Pipeline:
    """Clips ``(B, T, C, H, W)`` in -1 … 1 from prompts, and log-densities of clips. An image is a clip of one frame.

    Every step can be called by itself: `encode` (clips to noisy latents), `condition` (prompts to contexts), `draw` and
    `redraw` (noisy latents, window after window), `denoise` and `decode`, or `finish` for both. `stream` makes a clip
    piece by piece, in the memory of a window. `save` and `load` keep all parts in one folder.

    Args:
        flow: of latents with noise, a `STARFlowV`, a `STARFlow`, or another flow of images, such as a `TARFlow`;
            `decoding` is how it is inverted where nothing else is said.
        latents: the autoencoder.
        text: the encoder of prompts.
        settings: all else.
    """

    def __init__(self, flow: Flow, latents: Latents, text: TextEncoder, settings: PipelineSettings):
        self.flow = as_clips(flow).eval()
        self.latents = latents
        self.text = text
        self.settings = settings
        self.decoding = FramesAtOnce(self.flow.frame_length)

    @classmethod
    def load(cls, folder: str | os.PathLike[str] | None = None, device: str = "cpu") -> Pipeline:
        """The pipeline saved in `folder`; None: the shipped one of moving digits.

        Raises:
            FileNotFoundError, ValueError: parts are missing, damaged, or do not go together.
        """
        if folder is None and not (SHIPPED / SETTINGS).is_file():
            raise FileNotFoundError(f"no model is shipped in {SHIPPED}; name the folder of one with --model.")
        folder = SHIPPED if folder is None else Path(folder)
        settings = PipelineSettings.load(folder)
        pipeline = cls(
            Flow.from_pretrained(folder / "flow", device),
            load_latents(folder / "autoencoder", device=device, later_scale=settings.later_scale)
            if (folder / "autoencoder").is_dir()
            else Pixels(settings.clip_shape[1]),
            load_text(folder / "text", device=device),
            settings,
        )
        check_parts(pipeline.flow, pipeline.latents, pipeline.text, settings, str(folder))
        return pipeline

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write all parts into `folder`, whole or not at all."""
        with complete_folder(folder) as temporary:
            self.flow.save_pretrained(temporary / "flow")
            self.latents.save(temporary / "autoencoder")
            self.text.save(temporary / "text")
            self.settings.save(temporary)
        return Path(folder)

    @property
    def window(self) -> int:
        """Latent frames that the flow has positions for."""
        return int(self.flow.max_frames)

    def at_noise(self, noise: float) -> Pipeline:
        """This pipeline with another noise on what it encodes."""
        return Pipeline(self.flow, self.latents, self.text, replace(self.settings, noise=noise))

    def at_aspect(self, aspect_ratio: str) -> Pipeline:
        """This pipeline for frames of as many pixels and another aspect ratio, such as "16:9", on the same weights.

        Raises:
            ValueError: no aspect ratio, or a flow of one size alone.
        """
        frames, channels, *sides = self.settings.clip_shape
        size = aspect_size(
            math.sqrt(math.prod(sides)), aspect_ratio, self.latents.spatial_factor * self.flow.patch_size
        )
        clip_shape = (frames, channels, *size)
        settings = replace(self.settings, clip_shape=clip_shape, aspect_ratio=aspect_ratio)
        if list(size) == sides:
            return Pipeline(self.flow, self.latents, self.text, settings)
        latent_shape = self.latents.latent_shape(clip_shape)
        return Pipeline(self.flow.resized((self.window, *latent_shape[1:])), self.latents, self.text, settings)

    # Steps.

    @torch.no_grad()
    def encode(self, clips: Tensor, generator: torch.Generator) -> Tensor:
        """Latents of clips, with the noise of training."""
        return self._noisy(self._latents_of(clips), generator)

    @torch.no_grad()
    def condition(self, prompts: Sequence[str], window: Span | None = None, *, is_image: bool = False) -> Any:
        """The flow's context of prompts, phrased as in its training; None for a flow that takes none.

        Args:
            prompts: one a clip; the empty one is that of the unconditional branch.
            window: of one that continues a clip, prompts are rewritten.
            is_image: whether the clips are images.

        Raises:
            ValueError: prompts that the text encoder does not know.
        """
        return self._context(prompts, window, self.settings, is_image)

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        num_frames: int | None = None,
        given: Tensor | None = None,
        **drawing: Any,
    ) -> NoisyClips:
        """Noisy latents of a clip for each prompt, for `finish`, which may be called in several ways.

        Args:
            prompts: one a clip.
            num_frames: latent frames (default: as in training); beyond what the flow has positions for, window after
                window, under the settings' later prompt, or, where there is an anchored one, from the clip's first
                frame and the last `overlap - 1`.
            given: the first frames ``(B or 1, n, C, H, W)``: one for image to video; of more the prompt is the later
                one. Where an autoencoder takes some numbers of frames alone, the last of them are read.
            drawing: guidance, weight of classifier-free guidance (default: the settings'); overlap, latent frames that
                a window is given (default: the settings'; 0: a single window is allowed); candidates (default: 1), so
                many of each window are drawn, and the one is kept whose frames tell most of the prompt
                (`prompt_evidence`); seed of the random numbers (default: 0); decoding, how the flow is inverted.

        Raises:
            ValueError: settings that do not fit.
        """
        return _whole(self._drawn(prompts, num_frames, given, **drawing))

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
        """The clips ``(B, T, C, H, W)`` as they would be under other prompts, by re-encoding, for `finish`.

        ``x' = f⁻¹(z'; prompt)`` of ``z' = sqrt(1 - strength²) z + strength ε``, where ``z = f(x; source prompt)`` is
        the clip's own noise and ε is new: z' of samples are standard normal, as samples of the other prompt take.

        Args:
            clips: one for each prompt, or one for all; longer ones are re-encoded window after window.
            source_prompts: what they are; prompts: what they are to become.
            keep_frames: how many latent frames, the first ones, stay as they are.
            strength: share of new noise in 0 … 1: 0 with the same prompt gives the clip back, but for noise and
                autoencoder; 1 a new clip.
            guidance: of both maps; guidance, overlap, seed, decoding: as for `draw`.

        Raises:
            ValueError: settings that do not fit.
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"strength, the share of new noise, must lie in 0 … 1, got {strength}.")
        if not prompts or len(source_prompts) != len(prompts):
            raise ValueError(f"an edit takes a source prompt for each prompt, got {len(source_prompts)} of them.")
        generator = torch.Generator().manual_seed(seed)
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
            noise, _ = flow._transform(window.of(noisy), flow._embedding_net(source))
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
        return _whole(drawn._replace(windows=windows))

    @torch.no_grad()
    def denoise(self, latents: Tensor, context: Any, how: str | None = None) -> Tensor:
        """Latents of one window without their noise.

        how: "score" (Tweedie's step along the flow's own score), "learned" (the flow's denoiser) or "none" (default:
        the settings'). Raises ValueError for another, or where there is no denoiser.
        """
        how = self.check_denoising(how)
        if how == "none":
            return latents
        if how == "score":
            return latents + self.settings.noise**2 * self.flow.score(latents, context)
        return latents - UNIT * self._denoiser(latents, context)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Clips ``(B, T, C, H, W)`` in -1 … 1 of latents; raises ValueError where these, or they, overflow."""
        return torch.cat(list(self._decoded([latents])), dim=1)

    @torch.no_grad()
    def finish(self, drawn: NoisyClips, denoise: str | None = None) -> Tensor:
        """Clips ``(B, T, C, H, W)`` of what `draw` or `redraw` gave, without noise, beginning with what was given."""
        return torch.cat(list(self._finished(drawn, denoise)), dim=1)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        num_frames: int | None = None,
        given: Tensor | None = None,
        *,
        denoise: str | None = None,
        **drawing: Any,
    ) -> Tensor:
        """A clip for each prompt, ``(B, T, C, H, W)`` in -1 … 1, that begins with the given frames.

        Args:
            prompts: one a clip; given: its first frames.
            num_frames: of the clips, those given included (default: as in training, and as many more as are continued).
            denoise: how noise is taken off, as for `denoise`.
            drawing: as for `draw`.

        Raises:
            ValueError: settings that do not fit, or clips that are not finite.
        """
        return torch.cat(list(self.stream(prompts, num_frames, given, denoise=denoise, **drawing)), dim=1)

    @torch.no_grad()
    def stream(
        self,
        prompts: Sequence[str],
        num_frames: int | None = None,
        given: Tensor | None = None,
        *,
        denoise: str | None = None,
        **drawing: Any,
    ) -> Iterator[Tensor]:
        """What `generate` gives, frames after frames, in memory that does not grow with the clips."""
        self.check_denoising(denoise)
        num_given = 0 if given is None or given.dim() != 5 else given.shape[1]
        if num_frames is None:
            num_frames = self.settings.clip_shape[0] + (num_given if num_given > 1 else 0)
        if num_frames < 1:
            raise ValueError(f"there are no clips of {num_frames} frames; ask for one or more.")
        unread = num_given - self._num_frames(self._num_latent_frames(num_given)) if num_given else 0
        # As many latents as hold the frames, of which the last may be too many.
        needed = self._num_latent_frames(num_frames - unread + self.latents.temporal_factor - 1)
        left = num_frames
        for piece in self._finished(self._drawn(prompts, needed, given, **drawing), denoise):
            yield piece[:, :left]
            left -= min(piece.shape[1], left)

    @torch.no_grad()
    def edit(
        self,
        clips: Tensor,
        source_prompts: Sequence[str],
        prompts: Sequence[str],
        *,
        denoise: str | None = None,
        **drawing: Any,
    ) -> Tensor:
        """The clips ``(B, T, C, H, W)`` as they would be under other prompts: `redraw`, then `finish`."""
        self.check_denoising(denoise)
        return self.finish(self.redraw(clips, source_prompts, prompts, **drawing), denoise)

    # Densities.

    @torch.no_grad()
    def prompt_evidence(self, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        """What noisy latents ``(B, K, T, c, h, w)`` tell of their prompts, ``(B, K)``, in nats.

        The mean over frames, each seen by itself, of ``log p(frame | prompt) - log p(frame)``: by Bayes' rule ``log
        p(prompt | frame)``, but for what all frames have in common. Prompts are the later ones, which say nothing of
        how a clip begins, and p(frame) is the density under no prompt.
        """
        rows, count, length = latents.shape[:3]
        frames = latents.flatten(0, 2).unsqueeze(1)
        later = self.condition([self.settings.later_prompt(prompt) for prompt in prompts])
        conditional = map_context(lambda part: part.repeat_interleave(count * length, 0), later)
        unconditional = map_context(lambda part: part.expand(len(frames), *part.shape[1:]), self.condition([""]))
        evidence = self.flow.log_prob(frames, conditional) - self.flow.log_prob(frames, unconditional)
        return evidence.view(rows, count, length).mean(-1)

    @torch.no_grad()
    def log_prob(self, clips: Tensor, prompts: Sequence[str], *, seed: int = 0) -> Tensor:
        """Log-densities ``(B,)``, in nats, of clips' latents with the noise of training, drawn from the seed.

        At most as many frames as the flow has positions for; see `log_prob_of_frames` for more.
        """
        latents = self.encode(clips, torch.Generator().manual_seed(seed))
        return self.flow.log_prob(latents, self.condition(prompts, is_image=clips.shape[1] == 1))

    @torch.no_grad()
    def log_prob_of_frames(self, clips: Tensor, prompts: Sequence[str], *, seed: int = 0) -> Tensor:
        """Log-densities ``(B, latent frames)`` of each frame given those before it, in nats; their sum is `log_prob`.

        In longer clips a frame is given what it would be generated from, were windows moved on by single frames.
        """
        latents = self.encode(clips, torch.Generator().manual_seed(seed))
        context = self.condition(prompts, is_image=clips.shape[1] == 1)
        values = [self.flow.log_prob_of_frames(latents[:, : self.window], context)]
        for window in self._windows(latents.shape[1], self.window, self.window - 1):
            context = self.condition(prompts, window)
            values.append(self.flow.log_prob_of_frames(window.of(latents), context)[:, -1:])
        return torch.cat(values, dim=1)

    def nats_per_dim(self, clips: Tensor, prompts: Sequence[str], *, seed: int = 0) -> Tensor:
        """Negative log-density a dimension of each latent frame given those before it, ``(B, latent frames)``."""
        return -self.log_prob_of_frames(clips, prompts, seed=seed) / math.prod(self.flow.event_shape[1:])

    def check_denoising(self, how: str | None) -> str:
        """The way of denoising, where None is the settings'; raises ValueError for one that there is not."""
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

    def _drawn(
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
    ) -> NoisyClips:
        """`draw`, whose windows are drawn when they are asked for."""
        if candidates < 1:
            raise ValueError(f"candidates must be a positive number, got {candidates}.")
        if candidates > 1 and not all(prompts):
            raise ValueError("candidates are compared by what they show of their prompt: give one, or one candidate.")
        num_frames = self.window if num_frames is None else num_frames
        generator = torch.Generator().manual_seed(seed)
        clean, start = self._start(prompts, given, generator)
        num_given = start.shape[1]
        if num_frames <= num_given:
            raise ValueError(f"{num_given} frames are given: ask for more than that, got {num_frames}.")

        def noise_of(window: Span, flow: Flow) -> Tensor:
            return draw(self.flow.noise(window.num_frames), len(prompts) * candidates, None, generator)

        def begins(window: Span) -> bool:
            return num_given <= 1 and window.done == num_given

        drawn = NoisyClips(start, clean, (), num_frames, prompts, given)
        return drawn._replace(windows=self._roll_out(drawn, overlap, guidance, decoding, noise_of, begins))

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
                latents = self._best(latents.unflatten(0, (len(prompts), count)), prompts, span.num_known)
            made.append(Window(latents, context, span.num_known, span.is_anchored))
            return latents

        windows = self._windows(drawn.num_frames, drawn.start.shape[1], overlap)
        return (made.pop() for _ in rolling(drawn.start, windows, make, self.window))

    def _best(self, candidates: Tensor, prompts: Sequence[str], num_known: int) -> Tensor:
        """Of candidates ``(B, K, T, c, h, w)`` those whose new frames tell most of their prompts."""
        evidence = self.prompt_evidence(candidates[:, :, num_known:], prompts)
        best = evidence.nan_to_num(-math.inf).argmax(1)  # a candidate that overflowed is none
        return candidates[torch.arange(len(prompts)), best]

    def _windows(self, num_frames: int, num_known: int, overlap: int | None) -> Iterator[Span]:
        overlap = self.settings.overlap if overlap is None else overlap
        windows = spans(num_frames, num_known, self.window, overlap, is_anchored=self.settings.anchored is not None)
        if num_frames > self.window and (self.window // 2 if overlap is None else overlap) == 0:
            raise ValueError(
                f"{num_frames} frames are more than the {self.window} of one window: allow an overlap of windows, or "
                "ask for fewer."
            )
        return windows

    def _guided(self, guidance: float, window: Span, is_image: bool) -> Flow:
        if not guidance:
            return self.flow
        unconditional = self.settings.anchored_prompt("") if window.is_anchored else ""
        context = self.condition([unconditional], is_image=is_image)
        if context is None:
            raise ValueError("this model is conditioned on nothing, so there is nothing to guide.")
        return self.flow.guided(self.flow.guidance(guidance), context[0])

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
        settings = replace(self.settings, phrasing=replace(phrasing, noise=phrasing.noise or phrasing.denoiser))

        def make(span: Span, known: Tensor) -> Tensor:
            while noisy.stop < span.stop:
                window = next(windows)
                noisy.add(window.latents[:, window.num_known :])
            latents = torch.cat([known, noisy.of(span)[:, span.num_known :]], dim=1)
            context = self._context(drawn.prompts, span if span.first else None, settings, drawn.num_frames == 1)
            return self.denoise(latents, context, "learned")

        overlap = self.window - 1 if overlap is None else min(overlap, self.window - 1)
        chunks = self._windows(drawn.num_frames, 0, overlap)
        done = 0
        for piece in rolling(drawn.start[:, :0], chunks, make, self.window):
            new = piece[:, max(num_given - done, 0) :]
            done += piece.shape[1]
            if new.shape[1]:
                yield new

    def _decoded(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """`decode` of latents that come piece by piece."""

        def checked(values: Tensor, is_sound: Tensor) -> Tensor:
            overflown = len(values) - int(is_sound.flatten(1).all(1).sum())
            if overflown:
                raise ValueError(
                    f"{overflown} of {len(values)} clips overflow, far from what the model was trained on; take less "
                    "guidance, or another seed."
                )
            return values

        # Comparisons with what is not a number are false.
        latents = (checked(piece, piece.abs() < LARGEST_LATENT) for piece in pieces)
        for clips in self.latents.stream(latents):
            yield checked(clips, clips.isfinite())

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

    def _context(self, prompts: Sequence[str], window: Span | None, settings: PipelineSettings, is_image: bool) -> Any:
        if window is not None:
            rewritten = settings.anchored_prompt if window.is_anchored else settings.later_prompt
            prompts = [rewritten(prompt) for prompt in prompts]
        context = self.text([settings.phrase(prompt, is_image=is_image) for prompt in prompts])
        return map_context(self._own, context)

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
        return clean, self._noisy(clean, generator)

    def _latents_of(self, clips: Tensor) -> Tensor:
        return self._own(self.latents.encode(clips))

    def _noisy(self, latents: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(latents.shape, generator=generator, device=generator.device).to(latents)
        return latents + self.settings.noise * noise

    def _num_latent_frames(self, num_frames: int) -> int:
        """The most latent frames that so many frames fill."""
        return 1 + (num_frames - 1) // self.latents.temporal_factor

    def _num_frames(self, num_latent_frames: int) -> int:
        """The frames of so many latent ones."""
        return num_latent_frames and 1 + (num_latent_frames - 1) * self.latents.temporal_factor

    def _own(self, values: Tensor) -> Tensor:
        """Numbers as the flow takes them, on its device; data of a flow in half precision are in single precision."""
        weight = next(self.flow.parameters())
        if values.is_floating_point():
            values = values.to(torch.promote_types(weight.dtype, torch.float32))
        return values.to(weight.device)


def check_parts(flow: Any, latents: Latents, text: TextEncoder, settings: PipelineSettings, name: str) -> None:
    """Raise ValueError where parts of a pipeline do not go together; name: what a message calls it."""
    flow = as_clips(flow)
    expected, own = latents.latent_shape(settings.clip_shape), tuple(flow.event_shape)
    if expected[1:] != own[1:]:
        raise ValueError(f"{name} is inconsistent: its autoencoder makes latents {expected}, its flow takes {own}.")
    if tuple(text.shape) != flow.text_shape:
        raise ValueError(
            f"{name} is inconsistent: its text is of {_words(text.shape)}, its flow takes {_words(flow.text_shape)}."
        )


def _words(shape: Sequence[int]) -> str:
    """Of a text's shape."""
    return f"{shape[0]} classes" if len(shape) == 1 else f"{shape[0]} words of {shape[1]} channels"


def _whole(drawn: NoisyClips) -> NoisyClips:
    return drawn._replace(windows=list(drawn.windows))
