"""The demo page: a prompt becomes a clip, shown with its likelihood frame by frame. Needs gradio."""

from __future__ import annotations

from typing import Any

from nflib.command_line import USER_ERRORS
from nflib.optional import require
from video.gallery import FIGURE_STYLE, Entry, clip_figure
from video.media import read_image
from video.pipeline import Pipeline
from video.threads import threads_for

HOST = "127.0.0.1"
SIDE = 320  # of a clip on the page, in pixels
MOST_CANDIDATES = 8
LARGEST_GUIDANCE = 8.0
# A browser is to ask this server alone: whatever gradio's own page may name elsewhere is not fetched.
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"
EXPLANATION = (
    "The negative log-density of each latent frame given those before it, in nats per dimension of the latents with "
    "noise, given the prompt: lower is likelier."
)


class OwnRequestsOnly:
    """ASGI middleware that sends `POLICY` with every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = message | {
                    "headers": [*message["headers"], (b"content-security-policy", POLICY.encode())],
                }
            await send(message)

        await self.app(scope, receive, send_with_policy)


def draw_clip(
    pipeline: Pipeline,
    prompt: str,
    first_frame: str | None = None,
    seed: float = 0,
    guidance: float = 0.0,
    candidates: float = 1,
) -> Entry:
    """Generate a clip for the page, with its nats per dimension.

    Args:
        pipeline: the model.
        prompt: may be empty.
        first_frame: file of an image.
        seed: as for `Pipeline.draw`; a whole number, as a form gives it.
        guidance: as for `Pipeline.draw`.
        candidates: as for `Pipeline.draw`; a whole number, as a form gives it.

    Raises:
        ValueError: a prompt, image or number that does not fit.
    """
    if not (abs(seed) < 2**63 and seed == int(seed)):
        raise ValueError(f"the seed must be a whole number of less than 19 digits, got {seed}.")
    prompt = prompt.strip()
    given = None if not first_frame else read_image(first_frame, pipeline.settings.clip_shape[1:]).unsqueeze(0)
    with threads_for(pipeline, int(candidates)):
        clips = pipeline.generate([prompt], given=given, guidance=guidance, candidates=int(candidates), seed=int(seed))
        return Entry(prompt, clips[0].cpu(), pipeline.nats_per_dim(clips, [prompt], seed=int(seed))[0].cpu())


def build_page(pipeline: Pipeline, example: str = "") -> Any:
    """Build the demo page, as `gradio.Blocks`, which reports to nobody.

    Args:
        pipeline: the model.
        example: the prompt that stands there first.

    Raises:
        ModuleNotFoundError: gradio is not there.
    """
    gradio = _import_gradio()
    is_guided = pipeline.can_be_guided
    own_guidance = pipeline.settings.guidance if is_guided else 0.0

    def generate(prompt: str, first_frame: str | None, seed: float | None, guidance: float, candidates: float) -> str:
        try:
            entry = draw_clip(pipeline, prompt, first_frame, seed or 0, guidance, candidates)
        except USER_ERRORS as error:
            raise gradio.Error(str(error), duration=None, print_exception=False) from error
        enlarge = max(SIDE // entry.clip.shape[-1], 1)
        return clip_figure(entry, pipeline.settings.frame_rate, enlarge=enlarge)

    with gradio.Blocks(title="Clips from prompts", analytics_enabled=False) as page:
        gradio.Markdown("# Clips from prompts")
        with gradio.Row():
            with gradio.Column():
                prompt = gradio.Textbox(example, label="Prompt", elem_id="prompt")
                first_frame = gradio.Image(
                    label="First frame (may be left out)",
                    type="filepath",
                    format="png",
                    sources=["upload", "clipboard"],
                    height=200,
                    elem_id="first_frame",
                    visible=pipeline.window > 1,
                )
                seed = gradio.Number(0, label="Seed", precision=0, elem_id="seed")
                guidance = gradio.Slider(
                    0.0,
                    max(LARGEST_GUIDANCE, own_guidance),
                    own_guidance,
                    step=0.1,
                    label="Guidance",
                    elem_id="guidance",
                    visible=is_guided,
                )
                candidates = gradio.Slider(1, MOST_CANDIDATES, 1, step=1, label="Candidates", elem_id="candidates")
                button = gradio.Button("Generate", variant="primary", elem_id="generate")
            with gradio.Column():
                clip = gradio.HTML(label="Clip", elem_id="clip", min_height=SIDE)
                gradio.Markdown(EXPLANATION)
        inputs = [prompt, first_frame, seed, guidance, candidates]
        gradio.on([button.click, prompt.submit], generate, inputs, clip, api_name="generate")
    return page


def serve(page: Any, port: int | None = None, *, opens_browser: bool = False) -> str:
    """Show the page to browsers of this machine, at 127.0.0.1; returns its address.

    Args:
        page: of `build_page`.
        port: None for the first free one from 7860 on.
        opens_browser: whether to open the page in one.

    Raises:
        OSError: the port is taken.
    """
    gradio = _import_gradio()
    from starlette.middleware import Middleware

    # Fonts of the machine; gradio's own themes fetch theirs.
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    _, address, _ = page.queue(default_concurrency_limit=1).launch(
        server_name=HOST,
        server_port=port,
        share=False,
        inbrowser=opens_browser,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
        theme=theme,
        css=FIGURE_STYLE,
        app_kwargs={"middleware": [Middleware(OwnRequestsOnly)]},
    )
    return str(address)


def _import_gradio() -> Any:
    return require("gradio", "the page needs", extra="app,video")
