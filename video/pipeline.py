"""A flow with the autoencoder and text encoder that it was trained with: encode, condition, draw, denoise, decode."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nflib.decoding import Decoder
from nflib.flows import Flow
from nflib.io import complete_folder
from nflib.transforms import ProductGuidance
from video.flows.decoding import FramesAtOnce
from video.flows.denoiser import UNIT, Denoiser
from video.flows.starflow_v import STARFlowV
from video.latents.latents import Latents, load_latents
from video.pipeline_settings import SETTINGS, PipelineSettings
from video.rollout import Span, decode_window, new_noise, roll_out, spans
from video.text.encoders import TextEncoder, load_text

SHIPPED = Path(__file__).parent / "shipped" / "moving-digits"
# Latents have deviation 1.
LARGEST_LATENT = 1000.0
DENOISING = ("score", "learned", "none")


class Window(NamedTuple):
    """Noisy latents ``(B, T, c, h, w)`` of a window, given which context; its first num_known frames are older ones.

    is_anchored: whether the first of them is the clip's first frame.
    """

    latents: Tensor
    context: Tensor
    num_known: int
    is_anchored: bool = False


class NoisyClips(NamedTuple):
    """Noisy latents of clips: of the frames that were given, and of one window after the other.

    given: the frames themselves, the last of which are those that the latents are of; they come back as they are.
    """

    start: Tensor
    windows: list[Window]
    given: Tensor | None


class Pipeline:
    """Clips ``(B, T, C, H, W)`` in -1 … 1 from prompts, and log-densities of clips. An image is a clip of one frame.

    Every step can be called by itself: `encode` (clips to noisy latents), `condition` (prompts to contexts), `draw` and
    `redraw` (noisy latents, window after window), `denoise` and `decode`, or `finish` for both. `save` and `load` keep
    all parts in one folder.

    Args:
        flow: of latents with noise; `decoding` is how it is inverted where nothing else is said.
        latents: the autoencoder.
        text: the encoder of prompts.
        settings: all else.
    """

    def __init__(self, flow: STARFlowV, latents: Latents, text: TextEncoder, settings: PipelineSettings):
        self.flow = flow.as_clips().eval()
        self.latents = latents
        self.text = text
        self.settings = settings
        self.decoding = FramesAtOnce(self.flow._transform.frame_length)

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
        flow = STARFlowV.from_pretrained(folder / "flow", device).as_clips()
        latents = load_latents(folder / "autoencoder", device=device, later_scale=settings.later_scale)
        text = load_text(folder / "text", device=device)
        expected, own = latents.latent_shape(settings.clip_shape), tuple(flow.event_shape)
        if expected[1:] != own[1:]:
            raise ValueError(
                f"{folder} is inconsistent: its autoencoder makes latents {expected}, its flow takes {own}."
            )
        config = flow.config or {}
        words = (config["text_length"], config["text_channels"])
        if (text.length, text.channels) != words:
            raise ValueError(
                f"{folder} is inconsistent: its text is {text.length} words of {text.channels} channels, its flow "
                f"takes {words[0]} of {words[1]}."
            )
        return cls(flow, latents, text, settings)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write all parts into `folder`, whole or not at all."""
        with complete_folder(folder) as temporary:
            self.flow.save_pretrained(temporary / "flow")
            self.latents.autoencoder.save_pretrained(temporary / "autoencoder")
            self.text.save(temporary / "text")
            self.settings.save(temporary)
        return Path(folder)

    @property
    def window(self) -> int:
        """Latent frames that the flow has positions for."""
        return self.flow._transform.max_frames

    def at_noise(self, noise: float) -> Pipeline:
        """This pipeline with another noise on what it encodes."""
        return Pipeline(self.flow, self.latents, self.text, replace(self.settings, noise=noise))

    # Steps.

    @torch.no_grad()
    def encode(self, clips: Tensor, generator: torch.Generator) -> Tensor:
        """Latents of clips, with the noise of training."""
        latents = self.latents.encode(clips).to(self._like())
        noise = torch.randn(latents.shape, generator=generator, device=generator.device).to(latents)
        return latents + self.settings.noise * noise

    @torch.no_grad()
    def condition(self, prompts: Sequence[str], window: Span | None = None) -> Tensor:
        """The flow's context of prompts; of a window that continues a clip, if one is named, the rewritten prompts.

        Raises:
            ValueError: prompts that the text encoder does not know.
        """
        if window is not None:
            rewritten = self.settings.anchored_prompt if window.is_anchored else self.settings.later_prompt
            prompts = [rewritten(prompt) for prompt in prompts]
        return self.text(prompts).to(self._like())

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        num_frames: int | None = None,
        given: Tensor | None = None,
        *,
        guidance: float = 0.0,
        overlap: int | None = None,
        candidates: int = 1,
        seed: int = 0,
        decoding: Decoder | None = None,
    ) -> NoisyClips:
        """Noisy latents of a clip for each prompt, for `finish`, which may be called in several ways.

        Args:
            prompts: one a clip.
            num_frames: latent frames (default: as in training); beyond what the flow has positions for, window after
                window, under the settings' later prompt, or, where there is an anchored one, from the clip's first
                frame and the last `overlap - 1`.
            given: the first frames ``(B or 1, n, C, H, W)``: one for image to video; of more the prompt is the later
                one. Where an autoencoder takes some numbers of frames alone, the last of them are read.
            guidance: weight of classifier-free guidance (`ProductGuidance`).
            overlap: latent frames that a window is given (default: half of it; 0: a single window is allowed).
            candidates: so many of each window are drawn, and the one is kept whose frames tell most of the prompt
                (`prompt_evidence`).
            seed: of the random numbers.
            decoding: how the flow is inverted.

        Raises:
            ValueError: settings that do not fit.
        """
        if candidates < 1:
            raise ValueError(f"candidates must be a positive number, got {candidates}.")
        if candidates > 1 and not all(prompts):
            raise ValueError("candidates are compared by what they show of their prompt: give one, or one candidate.")
        num_frames = self.window if num_frames is None else num_frames
        generator = torch.Generator().manual_seed(seed)
        start = self._start(prompts, given, generator)
        num_given = start.shape[1]
        if num_frames <= num_given:
            raise ValueError(f"{num_given} frames are given: ask for more than that, got {num_frames}.")

        def noise_of(window: Span, flow: Flow) -> Tensor:
            return new_noise(flow, len(prompts) * candidates, window.num_frames, generator)

        def begins(window: Span) -> bool:
            return num_given <= 1 and window.done == num_given

        windows = self._roll_out(start, num_frames, overlap, prompts, guidance, decoding, noise_of, begins)
        return NoisyClips(start, windows, given)

    @torch.no_grad()
    def redraw(
        self,
        clips: Tensor,
        source_prompts: Sequence[str],
        prompts: Sequence[str],
        *,
        keep_frames: int = 0,
        strength: float = 0.0,
        guidance: float = 0.0,
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
        noisy = self._start(prompts, clips, generator)
        num_frames = noisy.shape[1]
        if not 0 <= keep_frames < num_frames:
            raise ValueError(f"keep_frames must lie in 0 … {num_frames - 1}, fewer than the clip's, got {keep_frames}.")

        def begins(window: Span) -> bool:
            return window.first == 0

        def noise_of(window: Span, flow: Flow) -> Tensor:
            source = self.condition(source_prompts, None if begins(window) else window)
            noise, _ = flow._transform(window.of(noisy), flow._embedding_net(source))
            new = torch.randn(noise.shape, generator=generator, device=generator.device).to(noise)
            return math.sqrt(1 - strength**2) * noise + strength * new

        start = noisy[:, :keep_frames]
        windows = self._roll_out(start, num_frames, overlap, prompts, guidance, decoding, noise_of, begins)
        return NoisyClips(start, windows, clips[:, : self._num_frames(keep_frames)] if keep_frames else None)

    @torch.no_grad()
    def denoise(self, latents: Tensor, context: Tensor, how: str = "score") -> Tensor:
        """Latents of one window without their noise.

        how: "score" (Tweedie's step along the flow's own score), "learned" (the flow's denoiser) or "none". Raises
        ValueError for another, or where there is no denoiser.
        """
        self.check_denoising(how)
        if how == "none":
            return latents
        if how == "score":
            return latents + self.settings.noise**2 * self.flow.score(latents, context)
        return latents - UNIT * self._denoiser(latents, context)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Clips ``(B, T, C, H, W)`` in -1 … 1 of latents; raises ValueError where these, or they, overflow."""
        clips = self.latents.decode(latents)
        # Comparisons with what is not a number are false.
        is_sound = (latents.abs() < LARGEST_LATENT).flatten(1).all(1) & clips.isfinite().flatten(1).all(1)
        if not is_sound.all():
            raise ValueError(
                f"{int((~is_sound).sum())} of {len(clips)} clips overflow, far from what the model was trained on; "
                "take less guidance, or another seed."
            )
        return clips

    @torch.no_grad()
    def finish(self, drawn: NoisyClips, denoise: str = "score") -> Tensor:
        """Clips ``(B, T, C, H, W)`` of what `draw` or `redraw` gave, without noise, beginning with what was given."""
        new = [self.denoise(window.latents, window.context, denoise)[:, window.num_known :] for window in drawn.windows]
        clips = self.decode(torch.cat([drawn.start, *new], dim=1))
        if drawn.given is None:
            return clips
        made = clips[:, self._num_frames(drawn.start.shape[1]) :]
        return torch.cat([drawn.given.expand(len(made), *drawn.given.shape[1:]).to(made), made], dim=1)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        num_frames: int | None = None,
        given: Tensor | None = None,
        *,
        denoise: str = "score",
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
        self.check_denoising(denoise)
        num_given = 0 if given is None or given.dim() != 5 else given.shape[1]
        if num_frames is None:
            num_frames = self.settings.clip_shape[0] + (num_given if num_given > 1 else 0)
        if num_frames < 1:
            raise ValueError(f"there are no clips of {num_frames} frames; ask for one or more.")
        unread = num_given - self._num_frames(self._num_latent_frames(num_given)) if num_given else 0
        # As many latents as hold the frames, of which the last may be too many.
        needed = self._num_latent_frames(num_frames - unread + self.latents.temporal_factor - 1)
        drawn = self.draw(prompts, needed, given, **drawing)
        return self.finish(drawn, denoise)[:, :num_frames]

    @torch.no_grad()
    def edit(
        self,
        clips: Tensor,
        source_prompts: Sequence[str],
        prompts: Sequence[str],
        *,
        denoise: str = "score",
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
        conditional = later.repeat_interleave(count * length, 0)
        unconditional = self.condition([""]).expand(len(frames), -1, -1)
        evidence = self.flow.log_prob(frames, conditional) - self.flow.log_prob(frames, unconditional)
        return evidence.view(rows, count, length).mean(-1)

    @torch.no_grad()
    def log_prob(self, clips: Tensor, prompts: Sequence[str], *, seed: int = 0) -> Tensor:
        """Log-densities ``(B,)``, in nats, of clips' latents with the noise of training, drawn from the seed.

        At most as many frames as the flow has positions for; see `log_prob_of_frames` for more.
        """
        return self.flow.log_prob(self.encode(clips, torch.Generator().manual_seed(seed)), self.condition(prompts))

    @torch.no_grad()
    def log_prob_of_frames(self, clips: Tensor, prompts: Sequence[str], *, seed: int = 0) -> Tensor:
        """Log-densities ``(B, latent frames)`` of each frame given those before it, in nats; their sum is `log_prob`.

        In longer clips a frame is given what it would be generated from, were windows moved on by single frames.
        """
        latents = self.encode(clips, torch.Generator().manual_seed(seed))
        values = [self.flow.log_prob_of_frames(latents[:, : self.window], self.condition(prompts))]
        for window in self._windows(latents.shape[1], self.window, self.window - 1):
            context = self.condition(prompts, window)
            values.append(self.flow.log_prob_of_frames(window.of(latents), context)[:, -1:])
        return torch.cat(values, dim=1)

    def nats_per_dim(self, clips: Tensor, prompts: Sequence[str], *, seed: int = 0) -> Tensor:
        """Negative log-density a dimension of each latent frame given those before it, ``(B, latent frames)``."""
        return -self.log_prob_of_frames(clips, prompts, seed=seed) / math.prod(self.flow.event_shape[1:])

    def check_denoising(self, how: str) -> None:
        """Raise ValueError for a way of denoising that there is not."""
        if how not in DENOISING:
            raise ValueError(f"denoise must be one of {', '.join(DENOISING)}, got {how!r}.")
        if how == "learned":
            self._denoiser  # noqa: B018

    @property
    def _denoiser(self) -> Denoiser:
        if self.flow.denoiser is None:
            raise ValueError('this model has no learned denoiser; choose denoise "score" or "none".')
        return self.flow.denoiser

    def _roll_out(
        self,
        start: Tensor,
        num_frames: int,
        overlap: int | None,
        prompts: Sequence[str],
        guidance: float,
        decoding: Decoder | None,
        noise_of: Callable[[Span, Flow], Tensor],
        begins: Callable[[Span], bool],
    ) -> list[Window]:
        """The windows of clips that begin with `start`, decoded from the noise that noise_of gives each of them.

        noise_of: tokens of one clip for each prompt, or of several candidates. begins: whether a window has the prompt
        as it stands.
        """
        made: list[Window] = []

        def make(span: Span, known: Tensor) -> Tensor:
            context = self.condition(prompts, None if begins(span) else span)
            flow = self._guided(guidance, span)
            noise = noise_of(span, flow)
            count = len(noise) // len(prompts)
            rows, past = (part.repeat_interleave(count, 0) for part in (context, known))
            latents = decode_window(flow, noise, rows, past, decoding or self.decoding)
            if count > 1:
                latents = self._best(latents.unflatten(0, (len(prompts), count)), prompts, span.num_known)
            made.append(Window(latents, context, span.num_known, span.is_anchored))
            return latents

        roll_out(start, self._windows(num_frames, start.shape[1], overlap), make)
        return made

    def _best(self, candidates: Tensor, prompts: Sequence[str], num_known: int) -> Tensor:
        """Of candidates ``(B, K, T, c, h, w)`` those whose new frames tell most of their prompts."""
        evidence = self.prompt_evidence(candidates[:, :, num_known:], prompts)
        best = evidence.nan_to_num(-math.inf).argmax(1)  # a candidate that overflowed is none
        return candidates[torch.arange(len(prompts)), best]

    def _windows(self, num_frames: int, num_known: int, overlap: int | None) -> Iterator[Span]:
        windows = spans(num_frames, num_known, self.window, overlap, is_anchored=self.settings.anchored is not None)
        if num_frames > self.window and (self.window // 2 if overlap is None else overlap) == 0:
            raise ValueError(
                f"{num_frames} frames are more than the {self.window} of one window: allow an overlap of windows, or "
                "ask for fewer."
            )
        return windows

    def _guided(self, guidance: float, window: Span) -> Flow:
        if not guidance:
            return self.flow
        unconditional = self.settings.anchored_prompt("") if window.is_anchored else ""
        return self.flow.guided(ProductGuidance(guidance), self.condition([unconditional])[0])

    def _start(self, prompts: Sequence[str], given: Tensor | None, generator: torch.Generator) -> Tensor:
        """Noisy latents of the given frames, one clip for each prompt; of none, ``(B, 0, c, h, w)``."""
        if not prompts:
            raise ValueError("there is no prompt; give at least one, which may be empty.")
        if given is None:
            return self._like().new_zeros(len(prompts), 0, *self.flow._transform.frame_shape)
        if given.dim() != 5 or len(given) not in (1, len(prompts)) or given.shape[2:] != self.settings.clip_shape[1:]:
            raise ValueError(
                f"given frames must have shape (1 or {len(prompts)}, frames, "
                f"{', '.join(map(str, self.settings.clip_shape[1:]))}), got {tuple(given.shape)}."
            )
        read = given[:, -self._num_frames(self._num_latent_frames(given.shape[1])) :]
        return self.encode(read.expand(len(prompts), *read.shape[1:]), generator)

    def _num_latent_frames(self, num_frames: int) -> int:
        """The most latent frames that so many frames fill."""
        return 1 + (num_frames - 1) // self.latents.temporal_factor

    def _num_frames(self, num_latent_frames: int) -> int:
        """The frames of so many latent ones."""
        return num_latent_frames and 1 + (num_latent_frames - 1) * self.latents.temporal_factor

    def _like(self) -> Tensor:
        return next(self.flow.parameters())
