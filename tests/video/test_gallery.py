"""What generate writes, as a browser shows it: the page of clips, videos, GIFs and strips."""

import base64
import json
import re

import matplotlib.image
import pytest

from tests.browser import browse, needs_chromium
from tests.video.tiny import SEVEN, tiny_model
from video.commands import main

# What a page with a script of its own would know: `data-shown` of the body.
PROBE = """<script>
addEventListener("load", async () => {
  const videos = [...document.querySelectorAll("video")];
  while (videos.some(video => !video.error && video.readyState < 1)) await new Promise(done => setTimeout(done, 50));
  document.body.dataset.shown = JSON.stringify({
    pictures: [...document.images].map(image => [image.naturalWidth, image.naturalHeight]),
    videos: videos.map(video => [video.videoWidth, video.videoHeight, video.duration]),
    asked: performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:")).length,
    beyond: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  });
});
</script></body>"""


def shown(page, folder):
    """What the browser made of a page."""
    copy = page.with_name("probed.html")
    text = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())  # which lets no probe in
    copy.write_text(text.replace("</body>", PROBE))
    found = re.search(r'data-shown="([^"]*)"', browse(copy, folder, "--dump-dom"))
    return json.loads(found.group(1).replace("&quot;", '"'))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    model = str(tiny_model().save(folder / "model"))
    prompts = ["--prompt", SEVEN, "--prompt", "a two", "--prompt", ""]
    files = ["--gallery", str(folder / "page.html"), "--out", str(folder / "c.png")]
    main(["generate", "--model", model, *prompts, *files])
    for suffix in ("mp4", "gif"):
        main(["generate", "--model", model, "--prompt", SEVEN, "--out", str(folder / f"c.{suffix}")])
    return folder


def test_page(folder):
    text = (folder / "page.html").read_text()
    assert text.count("<figure>") == text.count("<svg") == 3
    assert SEVEN in text and "no prompt" in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)  # nothing is loaded from elsewhere
    assert {path.name for path in folder.glob("c*.png")} == {"c-1.png", "c-2.png", "c-3.png"}


@needs_chromium
def test_page_in_a_browser(folder, tmp_path):
    """All clips are decoded, nothing is asked for that the page does not hold, and curves are drawn."""
    page = folder / "page.html"
    found = shown(page, tmp_path)
    assert found == {"pictures": [[128, 128]] * 3, "videos": [], "asked": 0, "beyond": 0}
    browse(page, tmp_path, f"--screenshot={tmp_path / 'page.png'}", "--window-size=1000,600")
    red, _, blue = matplotlib.image.imread(tmp_path / "page.png")[..., :3].transpose(2, 0, 1)
    assert (blue - red > 0.4).sum() > 300  # blue lines, which nothing else on the page is


@needs_chromium
def test_files_in_a_browser(folder, tmp_path):
    kinds = {"c-1.png": "image/png", "c.gif": "image/gif", "c.mp4": "video/mp4"}
    sources = [
        f"data:{kind};base64,{base64.b64encode((folder / name).read_bytes()).decode()}" for name, kind in kinds.items()
    ]
    page = tmp_path / "files.html"
    page.write_text(f'<body><img src="{sources[0]}"><img src="{sources[1]}"><video src="{sources[2]}"></video></body>')
    found = shown(page, tmp_path)
    assert found["pictures"] == [[4 * 128 + 3 * 2, 128], [128, 128]]
    assert found["videos"] == [[128, 128, pytest.approx(4 / 8)]]
