"""A flow with the autoencoder and the text encoder that it was trained with: prompts to clips, clips to likelihoods."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import video.rollout as rollout
from nflib.decoding import Decoder
from nflib.flows import Flow
from nflib.transforms import ProductGuidance
from video.flows.decoding import FramesAtOnce
from video.flows.denoiser import UNIT
from video.flows.starflow_v import STARFlowV
from video.latents.latents import Latents, load_latents
from video.pipeline_settings import PipelineSettings
from video.text.encoders import TextEncoder, load_text

DENOISING = ("score", "learned", "none")


class Window(NamedTuple):
    """Noisy latents ``(B, T, c, h, w)`` of a window, given which context; its first num_known frames are older ones.

    is_anchored: whether the first of them is the clip's first frame.
    """

    latents: Tensor
    context: Tensor
    num_known: int
    is_anchored: bool = False


class _Span(NamedTuple):
    """A window: frames first … stop, known up to done; anchored: with the clip's first frame in the first's place."""

    first: int
    done: int
    stop: int
    is_anchored: bool

    @property
    def num_known(self) -> int:
        return self.done - self.first

    def of(self, frames: Tensor) -> Tensor:
        """What there is of it in the frames ``(B, T, …)`` of a clip."""
        own = frames[:, self.first : self.stop]
        return torch.cat([frames[:, :1], own[:, 1:]], dim=1) if self.is_anchored else own


class NoisyClips(NamedTuple):
    """Noisy latents of clips: of the frames that were given, and of one window after the other."""

    start: Tensor
    windows: list[Window]
    given: Tensor | None


class Pipeline:
    """Clips ``(B, T, C, H, W)`` in -1 … 1 from prompts, and log-densities of clips.

    flow: of latents with noise; `decoding` is how it is inverted where nothing else is said. `save` and `load` keep all
    parts in one folder.
    """

    def __init__(self, flow: STARFlowV, latents: Latents, text: TextEncoder, settings: PipelineSettings):
        self.flow = flow.eval()
        self.latents = latents
        self.text = text
        self.settings = settings
        self.decoding = FramesAtOnce(flow._transform.frame_length)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str = "cpu") -> Pipeline:
        """The model saved in `folder`; raises FileNotFoundError or ValueError as its parts do."""
        settings = PipelineSettings.load(folder)
        flow = STARFlowV.from_pretrained(Path(folder) / "flow", device)
        latents = load_latents(Path(folder) / "autoencoder", device=device)
        text = load_text(Path(folder) / "text", device=device)
        config = flow.config or {}
        expected, own = latents.latent_shape(settings.clip_shape), tuple(config["event_shape"])
        if expected[1:] != own[1:]:
            raise ValueError(
                f"{folder} is inconsistent: its autoencoder makes latents {expected}, its flow takes {own}."
            )
        if (text.length, text.channels) != (config["text_length"], config["text_channels"]):
            raise ValueError(
                f"{folder} is inconsistent: its text is {text.length} words of {text.channels} channels, its flow "
                f"takes {config['text_length']} of {config['text_channels']}."
            )
        return cls(flow, latents, text, settings)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write all parts into `folder`."""
        folder = Path(folder)
        self.flow.save_pretrained(folder / "flow")
        self.latents.autoencoder.save_pretrained(folder / "autoencoder")
        self.text.save(folder / "text")
        self.settings.save(folder)
        return folder

    @property
    def window(self) -> int:
        """Latent frames that the flow has positions for."""
        return self.flow._transform.max_frames

    def at_noise(self, noise: float) -> Pipeline:
        """This model with another noise on what it encodes."""
        return Pipeline(self.flow, self.latents, self.text, replace(self.settings, noise=noise))

    def encode(self, clips: Tensor, generator: torch.Generator) -> Tensor:
        """Latents of clips, with the noise of training."""
        latents = self.latents.encode(clips).to(self._like())
        noise = torch.randn(latents.shape, generator=generator, device=generator.device).to(latents)
        return latents + self.settings.noise * noise

    def context(self, prompts: Sequence[str]) -> Tensor:
        """The flow's context of prompts; raises ValueError for those that the text encoder does not know."""
        return self.text(prompts).to(self._like())

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        num_frames: int | None = None,
        given: Tensor | None = None,
        *,
        guidance: float = 0.0,
        denoise: str = "score",
        overlap: int | None = None,
        candidates: int = 1,
        seed: int = 0,
        decoding: Decoder | None = None,
    ) -> Tensor:
        """A clip for each prompt, ``(B, T, C, H, W)`` in -1 … 1, that begins with the given frames.

        num_frames: how many latent frames (default: as in training); beyond what the flow has positions for, window
        after window, each from the last `overlap` frames (default: half a window; 0: a single window is allowed), under
        the settings' later prompt, or, where there is an anchored one, from the clip's first frame and `overlap - 1` of
        the last.
        given: the first frames ``(B or 1, n, C, H, W)``: one for image to video; of more the prompt is the later one.
        guidance: weight of classifier-free guidance (`ProductGuidance`). denoise: how noise is taken off the latents:
        "score" (Tweedie's step along the flow's own score), "learned" (the flow's denoiser) or "none". candidates: so
        many of each window are drawn, and the one is kept whose frames tell most of the prompt (`prompt_evidence`).
        Raises ValueError for settings that do not fit.
        """
        self._check_denoising(denoise)
        drawn = self.draw(
            prompts,
            num_frames,
            given,
            guidance=guidance,
            overlap=overlap,
            candidates=candidates,
            seed=seed,
            decoding=decoding,
        )
        return self.finish(drawn, denoise)

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
        """What `generate` draws, before the noise is taken off: for `finish`, which may be called in several ways."""
        if candidates < 1:
            raise ValueError(f"candidates must be a positive number, got {candidates}.")
        if candidates > 1 and not all(prompts):
            raise ValueError(
                "candidates are told apart by what they show of their prompt: give one, or a single candidate."
            )
        num_frames = self.window if num_frames is None else num_frames
        overlap = self._overlap(num_frames, overlap)
        generator = torch.Generator().manual_seed(seed)
        noisy = self.flow_tokens(prompts, given, generator)
        if num_frames <= noisy.shape[1]:
            raise ValueError(f"{noisy.shape[1]} frames are given: ask for more than that, got {num_frames}.")
        drawn = NoisyClips(noisy, [], given)
        num_given = noisy.shape[1]
        decoder = decoding or self.decoding
        for span in self._spans(num_frames, num_given, overlap):
            context = self._window_context(prompts, span, is_first=num_given <= 1 and span.done == num_given)
            known = span.of(noisy).repeat_interleave(candidates, 0) if span.num_known else None
            window = rollout.generate(
                self._guided(guidance, span),
                span.stop - span.first,
                context.repeat_interleave(candidates, 0),
                known,
                generator=generator,
                decoding=decoder,
            )
            if candidates > 1:
                window = window.unflatten(0, (len(prompts), candidates))
                evidence = self.prompt_evidence(window[:, :, span.num_known :], prompts)
                # A candidate that overflowed is none.
                best = evidence.nan_to_num(-math.inf).argmax(1)
                window = window[torch.arange(len(prompts)), best]
            noisy = torch.cat([noisy, window[:, span.num_known :]], dim=1)
            drawn.windows.append(Window(window, context, span.num_known, span.is_anchored))
        return drawn

    @torch.no_grad()
    def prompt_evidence(self, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        """What noisy latents ``(B, K, T, c, h, w)`` tell of their prompts, ``(B, K)``, in nats.

        The mean over frames, each seen by itself, of ``log p(frame | prompt) - log p(frame)``: by Bayes' rule ``log
        p(prompt | frame)``, but for what all frames have in common. Prompts are the later ones, which say nothing of
        how a clip begins, and p(frame) is the density under no prompt.
        """
        rows, count, length = latents.shape[:3]
        frames = latents.flatten(0, 2).unsqueeze(1)
        later = self.context([self.settings.later_prompt(prompt) for prompt in prompts])
        told = later.repeat_interleave(count * length, 0)
        untold = self.context([""]).expand(len(frames), -1, -1)
        evidence = self.flow.log_prob(frames, told) - self.flow.log_prob(frames, untold)
        return evidence.view(rows, count, length).mean(-1)

    @torch.no_grad()
    def finish(self, drawn: NoisyClips, denoise: str = "score") -> Tensor:
        """Clips ``(B, T, C, H, W)`` of what `draw` gave, without its noise; arguments and errors as for `generate`."""
        self._check_denoising(denoise)
        new = [
            self._denoised(window.latents, window.context, denoise)[:, window.num_known :] for window in drawn.windows
        ]
        clips = self.latents.decode(torch.cat([drawn.start, *new], dim=1))
        if drawn.given is not None:
            clips[:, : drawn.given.shape[1]] = drawn.given.to(clips)
        return clips

    @torch.no_grad()
    def edit(
        self,
        clips: Tensor,
        source_prompts: Sequence[str],
        prompts: Sequence[str],
        *,
        keep_frames: int = 0,
        fresh: float = 0.0,
        guidance: float = 0.0,
        denoise: str = "score",
        overlap: int | None = None,
        seed: int = 0,
        decoding: Decoder | None = None,
    ) -> Tensor:
        """The clips ``(B, T, C, H, W)`` as they would be under other prompts, by re-encoding.

        ``x' = f⁻¹(z'; prompt)`` of ``z' = sqrt(1 - fresh²) z + fresh ε``, where ``z = f(x; source prompt)`` is the
        clip's own noise and ε is new: for any `fresh` in 0 … 1, z' of samples are standard normal, as samples of the
        other prompt take. 0 with the same prompt gives the clip back, but for noise and autoencoder; 1 a new clip.
        keep_frames: how many latent frames, the first ones, stay as they are. guidance: of both maps; all else as for
        `generate`, longer clips, whose windows are re-encoded one by one, included. Raises ValueError for settings that
        do not fit.
        """
        if not 0 <= fresh <= 1:
            raise ValueError(f"fresh, the share of new noise, must lie in 0 … 1, got {fresh}.")
        if not prompts or len(source_prompts) != len(prompts):
            raise ValueError(f"an edit takes a source prompt for each prompt, got {len(source_prompts)} of them.")
        self._check_denoising(denoise)
        generator = torch.Generator().manual_seed(seed)
        noisy = self.flow_tokens(prompts, clips, generator)
        num_frames = noisy.shape[1]
        if not 0 <= keep_frames < num_frames:
            raise ValueError(f"keep_frames must lie in 0 … {num_frames - 1}, fewer than the clip's, got {keep_frames}.")
        overlap = self._overlap(num_frames, overlap)
        edited = plain = noisy[:, :keep_frames]
        decoder = decoding or self.decoding
        for span in self._spans(num_frames, keep_frames, overlap):
            flow = self._guided(guidance, span)
            source, context = (
                self._window_context(texts, span, is_first=span.first == 0) for texts in (source_prompts, prompts)
            )
            noise, _ = flow._transform(span.of(noisy), flow._embedding_net(source))
            new = torch.randn(noise.shape, generator=generator, device=generator.device).to(noise)
            noise = math.sqrt(1 - fresh**2) * noise + fresh * new
            known = span.of(edited) if span.num_known else None
            window = rollout.decode(flow, noise, context, known, decoding=decoder)
            edited = torch.cat([edited, window[:, span.num_known :]], dim=1)
            plain = torch.cat([plain, self._denoised(window, context, denoise)[:, span.num_known :]], dim=1)
        made = self.latents.decode(plain)
        if keep_frames:
            kept = 1 + (keep_frames - 1) * self.latents.temporal_factor
            made[:, :kept] = clips[:, :kept].to(made)
        return made

    def _overlap(self, num_frames: int, overlap: int | None) -> int:
        """The overlap of windows, or its default, if it will do for so many frames."""
        overlap = self.window // 2 if overlap is None else overlap
        if not 0 <= overlap < self.window:
            raise ValueError(f"overlap must lie in 0 … {self.window - 1}, fewer frames than a window, got {overlap}.")
        if num_frames > self.window and not overlap:
            raise ValueError(
                f"{num_frames} frames are more than the {self.window} of one window: allow an overlap of windows, or "
                "ask for fewer."
            )
        return overlap

    def _spans(self, num_frames: int, num_known: int, overlap: int) -> Iterator[_Span]:
        """The windows of so many frames, the first of which are known."""
        for first, done, stop in rollout.windows(num_frames, num_known, self.window, overlap):
            # A single known frame has to be the last one, which tells where things are.
            is_anchored = self.settings.anchored is not None and first > 0 and done - first > 1
            yield _Span(first, done, stop, is_anchored)

    def _guided(self, guidance: float, span: _Span) -> Flow:
        if not guidance:
            return self.flow
        untold = self.settings.anchored_prompt("") if span.is_anchored else ""
        return self.flow.guided(ProductGuidance(guidance), self.context([untold])[0])

    def _window_context(self, prompts: Sequence[str], span: _Span, *, is_first: bool) -> Tensor:
        if is_first:
            return self.context(prompts)
        rewritten = self.settings.anchored_prompt if span.is_anchored else self.settings.later_prompt
        return self.context([rewritten(prompt) for prompt in prompts])

    def flow_tokens(self, prompts: Sequence[str], given: Tensor | None, generator: torch.Generator) -> Tensor:
        """Noisy latents of the given frames, one clip for each prompt; of none, ``(B, 0, c, h, w)``."""
        if not prompts:
            raise ValueError("there is no prompt; give at least one, which may be empty.")
        if given is None:
            frame_shape = self.latents.latent_shape(self.settings.clip_shape)[1:]
            return self._like().new_zeros(len(prompts), 0, *frame_shape)
        if given.dim() != 5 or len(given) not in (1, len(prompts)) or given.shape[2:] != self.settings.clip_shape[1:]:
            raise ValueError(
                f"given frames must have shape (1 or {len(prompts)}, frames, "
                f"{', '.join(map(str, self.settings.clip_shape[1:]))}), got {tuple(given.shape)}."
            )
        return self.encode(given.expand(len(prompts), *given.shape[1:]), generator)

    @torch.no_grad()
    def log_prob(self, clips: Tensor, prompts: Sequence[str], *, seed: int = 0) -> Tensor:
        """Log-densities ``(B,)``, in nats, of clips' latents with the noise of training, drawn from the seed.

        At most as many frames as the flow has positions for; see `log_prob_of_frames` for more.
        """
        return self.flow.log_prob(self.encode(clips, torch.Generator().manual_seed(seed)), self.context(prompts))

    @torch.no_grad()
    def log_prob_of_frames(self, clips: Tensor, prompts: Sequence[str], *, seed: int = 0) -> Tensor:
        """Log-densities ``(B, latent frames)`` of each frame given those before it, in nats; their sum is `log_prob`.

        In longer clips a frame is given what it would be generated from, were windows moved on by single frames.
        """
        latents = self.encode(clips, torch.Generator().manual_seed(seed))
        values = [self.flow.log_prob_of_frames(latents[:, : self.window], self.context(prompts))]
        for span in self._spans(latents.shape[1], self.window, self.window - 1):
            context = self._window_context(prompts, span, is_first=False)
            values.append(self.flow.log_prob_of_frames(span.of(latents), context)[:, -1:])
        return torch.cat(values, dim=1)

    def _denoised(self, latents: Tensor, context: Tensor, denoise: str) -> Tensor:
        if denoise == "none":
            return latents
        if denoise == "score":
            return latents + self.settings.noise**2 * self.flow.score(latents, context)
        assert self.flow.denoiser is not None  # checked before anything is generated
        return latents - UNIT * self.flow.denoiser(latents, context)

    def _check_denoising(self, denoise: str) -> None:
        if denoise not in DENOISING:
            raise ValueError(f"denoise must be one of {', '.join(DENOISING)}, got {denoise!r}.")
        if denoise == "learned" and self.flow.denoiser is None:
            raise ValueError('this model has no learned denoiser; choose denoise "score" or "none".')

    def _like(self) -> Tensor:
        return next(self.flow.parameters())
