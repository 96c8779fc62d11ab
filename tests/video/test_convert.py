"""Released weights, as tiny stand-ins, converted and drawn from by the command line alone."""

import json
import math
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from nflib.io.tensors import read_tensors
from tests.recorded import recorded
from tests.video import stand_ins
from video.commands import main
from video.conversion.released import load_starflow, load_tarflow
from video.densities import noise_generator
from video.drawing import NoisyClips
from video.evaluation.judgement import scored_quantity
from video.media import read_clip, write_clip
from video.pipeline import Pipeline
from video.text import TokenEmbeddings, load_text
from video.training.bits import BitsPerDimension
from video.training.likelihood import NoisyLikelihood
from video.training.starts import SavedFlow

PROMPT = ["--prompt", "a red fox in snow"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The files that a user has."""
    folder = tmp_path_factory.mktemp("released")
    (folder / "t2i.yaml").write_text(stand_ins.T2I)
    (folder / "t2v.yaml").write_text(stand_ins.T2V)
    torch.save(stand_ins.weights(stand_ins.starflow_shapes(is_video=False)), folder / "t2i.pth")
    torch.save(stand_ins.weights(stand_ins.starflow_shapes(is_video=True, top=128)), folder / "t2v.pth")
    torch.save(stand_ins.weights(stand_ins.tarflow_shapes()), folder / "afhq_model_2_64_2_1_0.07.pth")
    stand_ins.save_t5(folder / "t5")
    stand_ins.save_kl(folder / "kl")
    stand_ins.save_wan(folder / "wan" / "vae")
    return folder


def converted(parts, name, autoencoder, output, *arguments):
    given = ["--config", f"{parts}/{name}.yaml", "--checkpoint", f"{parts}/{name}.pth", "--text", f"{parts}/t5"]
    main(["convert", *given, "--autoencoder", f"{parts}/{autoencoder}", "--output", str(output), *arguments])
    return output


@pytest.fixture(scope="module")
def t2i(parts, tmp_path_factory):
    return converted(parts, "t2i", "kl", tmp_path_factory.mktemp("t2i"))


@pytest.fixture(scope="module")
def t2v(parts, tmp_path_factory):
    return converted(parts, "t2v", "wan", tmp_path_factory.mktemp("t2v"))


@pytest.fixture(scope="module")
def tarflow(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tarflow")
    main(["convert", "--checkpoint", f"{parts}/afhq_model_2_64_2_1_0.07.pth", "--output", str(folder)])
    return folder


def test_images(parts, t2i, tmp_path):
    pipeline = Pipeline.load(t2i)
    assert pipeline.settings.clip_shape == (1, 3, 32, 32)
    assert (pipeline.settings.noise, pipeline.settings.guidance, pipeline.settings.denoise) == (0.3, 2.5, "score")
    assert pipeline.settings.phrase("a fox", is_image=True) == "a fox"
    out = tmp_path / "a.png"
    main(["generate", "--model", str(t2i), *PROMPT, "--num-clips", "3", "--out", str(out)])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert read_clip(out).shape == (1, 3, 2 * (128 + 8) - 8, 2 * (128 + 8) - 8)
    main(["generate", "--model", str(t2i), *PROMPT, "--aspect", "16:9", "--out", str(out)])
    assert read_clip(out).shape[-2:] == (24 * 3, 40 * 3)
    # The flow is the checkpoint's.
    flow = load_starflow(parts / "t2i.yaml", parts / "t2i.pth")
    x, text = torch.randn(2, 4, 4, 4), torch.randn(2, stand_ins.TEXT_LENGTH, stand_ins.TEXT_CHANNELS)
    with torch.no_grad():
        torch.testing.assert_close(pipeline.flow.log_prob(x.unsqueeze(1), text), flow.log_prob(x, text))


def test_clips(parts, t2v, tmp_path):
    pipeline = Pipeline.load(t2v)
    settings = pipeline.settings
    assert settings.clip_shape == (9, 3, 64, 64) and pipeline.window == 3
    assert (settings.noise, settings.later_scale, settings.frame_rate, settings.overlap) == (0.5, 0.6, 16, 2)
    assert settings.denoise == "learned"
    phrase = "Noise Level 500:\nA video with 16 fps:\na fox\n\n in a 1:1 aspect ratio.\n"
    assert settings.phrase("a fox") == phrase
    wide = pipeline.at_aspect("16:9")
    assert wide.settings.clip_shape == (9, 3, 48, 80) and "16:9" in wide.settings.phrase("")
    out = tmp_path / "a.mp4"
    arguments = ["generate", "--model", str(t2v), *PROMPT, "--out", str(out)]
    main([*arguments, "--aspect", "16:9", "--seconds", "0.5"])
    clip = read_clip(out)
    assert clip.shape == (8, 3, 48, 80)
    image = write_clip(clip[:1], tmp_path / "first.png")
    main([*arguments, "--aspect", "16:9", "--first-frame", str(image), "--seconds", "1.5"])
    assert read_clip(out).shape == (24, 3, 48, 80)
    torch.testing.assert_close(read_clip(out)[0], clip[0], atol=0.3, rtol=0)
    main(["generate", "--model", str(t2v), *PROMPT, *PROMPT, "--frames", "1", "--out", f"{tmp_path}/b.png"])
    assert read_clip(tmp_path / "b.png").shape == (1, 3, 128, 128 + 4 + 128)


def test_both_branches_are_phrased_alike(t2v):
    pipeline, asked = Pipeline.load(t2v), []
    text = pipeline.text
    pipeline.text = lambda prompts: (asked.extend(prompts), text(prompts))[1]
    pipeline.generate(["a fox"], 5, seed=0)
    assert asked == [pipeline.settings.phrase("a fox"), pipeline.settings.phrase(""), pipeline.settings.phrase("a fox")]
    asked.clear()
    pipeline.generate(["a fox"], 1, seed=0)
    assert asked[:2] == [
        "Noise Level 500:\nAn image:\n" + words + "\n\n in a 1:1 aspect ratio.\n" for words in ("a fox", "")
    ]
    pipeline.generate(["a fox"], 1, seed=0, candidates=2)  # which are compared as images, too
    assert all("An image:" in prompt for prompt in asked)


def test_last_frames_that_fill_no_latent_one_are_left_out(t2v, tmp_path):
    clip = str(write_clip(torch.zeros(7, 3, 64, 64), tmp_path / "a.gif", 16))
    main(["edit", clip, "--model", str(t2v), "--prompt", "a fox", "--denoise", "none", "--out", f"{tmp_path}/b.gif"])
    assert len(read_clip(tmp_path / "b.gif")) == 5


@torch.no_grad()
def test_latents_are_those_of_diffusers(t2v):
    latents, autoencoder = Pipeline.load(t2v).latents, stand_ins.wan22()
    clips = torch.rand(2, 9, 3, 32, 48) * 2 - 1
    raw = autoencoder.encode(clips.transpose(1, 2)).latent_dist.mode()
    mean, deviation = (
        torch.tensor(autoencoder.config[name]).view(6, 1, 1, 1) for name in ("latents_mean", "latents_std")
    )
    scale = torch.tensor([1.0, 0.6, 0.6]).view(3, 1, 1)
    z = latents.encode(clips)
    torch.testing.assert_close(z.transpose(1, 2), (raw - mean) / deviation * scale, atol=1e-5, rtol=0)
    decoded = autoencoder.decode(raw).sample.transpose(1, 2)
    torch.testing.assert_close(latents.decode(z), decoded, atol=1e-5, rtol=0)
    pieces = list(latents.stream(z.split([1, 2], dim=1)))
    assert [piece.shape[1] for piece in pieces] == [1, 8]
    torch.testing.assert_close(torch.cat(pieces, dim=1), decoded, atol=1e-5, rtol=0)


def test_long_clips_come_piece_by_piece(t2v):
    pipeline = Pipeline.load(t2v)
    pieces = list(pipeline.stream(["a fox"], 25, seed=1))
    assert sum(piece.shape[1] for piece in pieces) == 25 and max(piece.shape[1] for piece in pieces) <= 9
    torch.testing.assert_close(torch.cat(pieces, 1), pipeline.generate(["a fox"], 25, seed=1))
    # As in parts: drawn whole, denoised in the public sampler's chunks, decoded.
    drawn = pipeline.draw(["a fox"], 7, seed=1)
    clean = torch.cat(
        [drawn.windows[0].latents, *(window.latents[:, window.num_known :] for window in drawn.windows[1:])], 1
    )
    context = pipeline.condition(["a fox"])
    for first, done, stop in [(0, 0, 3), (1, 3, 4), (2, 4, 5), (3, 5, 6), (4, 6, 7)]:
        clean[:, done:stop] = pipeline.denoise(clean[:, first:stop], context, "learned")[:, done - first :]
    torch.testing.assert_close(pipeline.decode(clean), torch.cat(pieces, 1), atol=1e-4, rtol=0)


@pytest.fixture(scope="module", params=["starflow_v", "starflow_v_long"])
def golden(request, parts, tmp_path_factory):
    """Recorded numbers, and the recorded weights as a converted model."""
    recording, folder = recorded(request.param), tmp_path_factory.mktemp("golden")
    arguments = {"img_size": 64, "vid_size": "9:16", "noise_std": 0.5, "vae": "Wan-AI/Wan2.2-TI2V-5B-Diffusers:0.6"}
    (folder / "config.json").write_text(json.dumps({**recording.document["config"], **arguments}))
    save_file(recording.weights, folder / "weights.safetensors")
    text = stand_ins.save_t5(folder / "t5", channels=24)
    files = ["--config", f"{folder}/config.json", "--checkpoint", f"{folder}/weights.safetensors"]
    main(["convert", *files, "--autoencoder", f"{parts}/wan", "--text", str(text), "--output", f"{folder}/model"])
    return recording, Pipeline.load(folder / "model")


def test_recorded_guidance_image_to_video_and_roll_out(golden):
    """The numbers of the public code, row by row, by the windows of a converted model."""
    recording, pipeline = golden
    inputs, outputs = recording.inputs, recording.outputs
    noise = pipeline.flow._transform.patches(inputs["noise"])[0]
    length, num_frames = pipeline.flow.frame_length, inputs["noise"].shape[1]
    expected = outputs.get("reverse.i2v_guided", outputs.get("reverse.long_guided"))
    for row in (slice(0, 1), slice(1, 2)):
        pipeline.text = lambda prompts, row=row: inputs["y" if prompts[0] else "y_uncond"][row]
        start = inputs["first_frame"][row] if "first_frame" in inputs else inputs["noise"][row, :0]
        drawn = NoisyClips(start, start, (), num_frames, ["a"], None)
        windows = pipeline._roll_out(
            drawn,
            2,
            recording.document["guidance"],
            None,
            lambda span, flow, row=row: noise[row, span.first * length : span.stop * length],
            lambda span: True,
        )
        made = torch.cat([start, *(window.latents[:, window.num_known :] for window in windows)], dim=1)
        torch.testing.assert_close(made, expected[row], atol=1e-4, rtol=0)
    if "denoiser" in outputs:
        clean = pipeline.denoise(inputs["x"], inputs["y"])
        torch.testing.assert_close(clean, inputs["x"] - 0.3 * outputs["denoiser"], atol=1e-4, rtol=0)


def test_half_precision(parts, t2v, tmp_path):
    half = converted(parts, "t2v", "wan", tmp_path / "half", "--dtype", "bfloat16")
    tensors = read_tensors(half / "flow" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    pipeline = Pipeline.load(half)
    clip = pipeline.generate(["a fox"], 9, seed=0, guidance=0.0)
    assert clip.isfinite().all() and clip.dtype == torch.float32
    again = converted(parts, "t2v", "wan", tmp_path / "again")
    assert {tensor.dtype for tensor in read_tensors(again / "flow" / "model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("kind", ["safetensors", "shards", "bin shards"])
def test_other_files(parts, t2i, tmp_path, kind):
    state = stand_ins.weights(stand_ins.starflow_shapes(is_video=False))
    path = tmp_path / "model.safetensors"
    if kind == "safetensors":
        save_file(state, path)
    else:
        suffix, save = (".safetensors", save_file) if kind == "shards" else (".bin", torch.save)
        places = {name: f"part-{index % 2}{suffix}" for index, name in enumerate(state)}
        for part in {*places.values()}:
            save({name: state[name] for name in state if places[name] == part}, tmp_path / part)
        path = tmp_path / f"model{suffix}.index.json"
        path.write_text(json.dumps({"weight_map": places}))
    arguments = ["--config", f"{parts}/t2i.yaml", "--text", f"{parts}/t5", "--autoencoder", f"{parts}/kl"]
    main(["convert", "--checkpoint", str(path), *arguments, "--output", f"{tmp_path}/model"])
    written, expected = (read_tensors(folder / "flow" / "model.safetensors") for folder in (tmp_path / "model", t2i))
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)


@pytest.mark.parametrize("wrapper", ["average", "compiled blocks", "checkpointed layers"])
def test_wrapped_weights(parts, tmp_path, wrapper):
    """Of torch's AveragedModel, and of blocks or layers that were wrapped one by one."""
    plain = parts / "afhq_model_2_64_2_1_0.07.pth"
    state = torch.load(plain)
    renamed = {
        "average": lambda name: f"module.{name}",
        "compiled blocks": lambda name: name.replace("blocks.0.", "blocks.0._orig_mod.", 1),
        "checkpointed layers": lambda name: name.replace("attn_blocks.0.", "attn_blocks.0._checkpoint_wrapped_module."),
    }[wrapper]
    state = {renamed(name): value for name, value in state.items()}
    if wrapper == "average":
        state["n_averaged"] = torch.tensor(7)
    torch.save(state, tmp_path / "wrapped.pth")
    wrapped, expected = (load_tarflow(path, 2).state_dict() for path in (tmp_path / "wrapped.pth", plain))
    assert all(torch.equal(wrapped[name], value) for name, value in expected.items())


def test_tarflow(parts, tarflow, tmp_path):
    pipeline = Pipeline.load(tarflow)
    assert pipeline.settings.clip_shape == (1, 3, 8, 8) and pipeline.settings.noise == 0.07
    flow = load_tarflow(parts / "afhq_model_2_64_2_1_0.07.pth", 2)
    images, labels = torch.rand(3, 3, 8, 8) * 2 - 1, torch.tensor([0, 2, -1])
    with torch.no_grad():
        expected = flow.log_prob(images, labels)
        torch.testing.assert_close(pipeline.flow.log_prob(images.unsqueeze(1), labels), expected)
    variance = torch.load(parts / "afhq_model_2_64_2_1_0.07.pth")["var"]
    again = Pipeline.load(pipeline.save(tmp_path / "again"))
    for model in (pipeline, again):
        torch.testing.assert_close(model.flow._distribution.deviation.square(), variance)
    torch.testing.assert_close(again.generate(["1"], seed=3), pipeline.generate(["1"], seed=3))
    # With guidance, a step along the score, and no more than what the flow itself draws.
    drawn = pipeline.draw(["2", "0"], seed=4, guidance=1.5).windows[0]
    own = flow.guided(pipeline.flow.guidance(1.5), torch.tensor(-1))
    noise = own.encode(drawn.latents[:, 0], torch.tensor([2, 0]))
    assert float((noise.square() / variance).mean()) == pytest.approx(1, abs=0.3)
    assert drawn.latents.shape == (2, 1, 3, 8, 8)
    out = tmp_path / "grid.png"
    main(["generate", "--model", str(tarflow), "--prompt", "0", "--prompt", "2", "--guidance", "1", "--out", str(out)])
    assert read_clip(out).shape == (1, 3, 128, 2 * 128 + 2 * 16)
    nats = pipeline.nats_per_dim(images.unsqueeze(1), ["0", "2", ""])
    assert nats.shape == (3, 1) and nats.isfinite().all()


def test_bits_of_a_tarflow_of_dequantised_pixels(parts, tmp_path):
    """As the public code counts them: of ``2 (k + u) / 256 - 1``, less log 128 nats a number."""
    weights = tmp_path / "cifar_model_2_64_2_1_uniform.pth"
    weights.write_bytes((parts / "afhq_model_2_64_2_1_0.07.pth").read_bytes())
    main(["convert", "--checkpoint", str(weights), "--output", f"{tmp_path}/model"])
    pipeline = Pipeline.load(tmp_path / "model")
    levels = torch.randint(0, 256, (3, 1, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    levels[0, 0, 0, 0, :3] = torch.tensor([0, 1, 255])
    pictures = levels / 127.5 - 1
    uniform = torch.rand(levels.shape, generator=noise_generator(5))
    with torch.no_grad():
        density = load_tarflow(weights, 2).log_prob((2 * (levels + uniform) / 256 - 1)[:, 0], torch.tensor([0, 2, -1]))
    expected = density - levels[0].numel() * math.log(128)
    prompts = ["0", "2", ""]
    torch.testing.assert_close(pipeline.log_prob(pictures, prompts, seed=5), expected, rtol=1e-5, atol=1e-3)
    of_frames = pipeline.log_prob_of_frames(pictures, prompts, seed=5)
    torch.testing.assert_close(of_frames.sum(1), expected, rtol=1e-5, atol=1e-3)
    (tmp_path / "config.json").write_text('{"patch_size": 2, "noise_std": 0.05, "noise_type": "uniform"}')
    for noise, levels in (((), 256), (("--noise", "0.05"), None)):
        arguments = ["--checkpoint", str(weights), "--config", f"{tmp_path}/config.json", *noise]
        main(["convert", *arguments, "--output", f"{tmp_path}/other"])
        assert Pipeline.load(tmp_path / "other").settings.levels == levels
    # Training goes on in the same units.
    objective = BitsPerDimension(NoisyLikelihood(0.0, 0.0, None), 256, pipeline.settings.pixel_scale)
    batch = {"inputs": pictures, "context": torch.tensor([0, 2, -1])}
    bits = float(objective(pipeline.flow.images, batch, noise_generator(5))[0].detach())
    assert bits == pytest.approx(float(-density.mean()) / (192 * math.log(2)) + 7, rel=1e-5)
    start = SavedFlow(f"{tmp_path}/model", {}, False, "cpu")
    assert [start.settings((1, 3, 8, 8), noise, 8.0, 256).pixel_scale for noise in (0.0, 0.1)] == [255 / 256, 1.0]
    # What has noise in its step, or none, is the level itself again.
    noisy = pipeline.encode(pictures, torch.Generator().manual_seed(1))
    for latents in (noisy, pipeline.latents.encode(pictures)):
        torch.testing.assert_close(pipeline.decode(latents), pictures)
    assert noisy.abs().max() <= 1 and "256 levels" in scored_quantity(pipeline)


def test_tarflow_without_classes(tmp_path):
    save_file(stand_ins.weights(stand_ins.tarflow_shapes(0)), tmp_path / "w.safetensors")
    arguments = ["--checkpoint", f"{tmp_path}/w.safetensors", "--patch-size", "2", "--noise", "0.05"]
    main(["convert", *arguments, "--output", f"{tmp_path}/model"])
    main(["generate", "--model", f"{tmp_path}/model", "--out", f"{tmp_path}/a.png"])
    assert read_clip(tmp_path / "a.png").shape == (1, 3, 128, 128)
    for given, answer in ((["--prompt", "a"], "names no class"), (["--guidance", "1"], "nothing to guide")):
        with pytest.raises(SystemExit, match=answer):
            main(["generate", "--model", f"{tmp_path}/model", *given, "--out", f"{tmp_path}/b.png"])


def test_names_of_classes(parts, tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\nwild\n")
    arguments = ["convert", "--checkpoint", f"{parts}/afhq_model_2_64_2_1_0.07.pth", "--output", f"{tmp_path}/model"]
    main([*arguments, "--labels", f"{tmp_path}/names.txt"])
    assert load_text(tmp_path / "model" / "text")(["dog", "wild", ""]).tolist() == [1, 2, -1]
    main(["generate", "--model", f"{tmp_path}/model", "--prompt", "wild", "--out", f"{tmp_path}/a.png"])
    (tmp_path / "names.txt").write_text("crane\ndog\ncrane\n")  # as ImageNet's lists have it, a bird and a machine
    with pytest.raises(SystemExit, match="names several classes 'crane'"):
        main([*arguments, "--labels", f"{tmp_path}/names.txt"])
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    with pytest.raises(SystemExit, match="names 2 classes, and the model has 3"):
        main([*arguments, "--labels", f"{tmp_path}/names.txt"])


def test_decoders_and_token_embeddings(tmp_path):
    """Gemma: its last hidden states, or its embeddings alone, times the square root of their number of channels."""
    from transformers import Gemma2Model

    folder = stand_ins.save_gemma(tmp_path / "gemma")
    model = Gemma2Model.from_pretrained(folder).eval()
    ids = torch.tensor([[3, 5]])
    text = load_text(folder, length=4)
    context = text(["a fox"])
    assert text.shape == (4, 16) and context[0, 2:].abs().max() == 0
    with torch.no_grad():
        torch.testing.assert_close(context[:, :2], model(input_ids=ids).last_hidden_state, atol=1e-5, rtol=0)
    text = load_text(folder, length=4, embeddings_only=True)
    assert isinstance(text, TokenEmbeddings)
    expected = model.get_input_embeddings().weight[torch.tensor([3, 5, 0, 0])] * 4
    torch.testing.assert_close(text(["a fox"])[0], expected)
    text.save(tmp_path / "saved")
    torch.testing.assert_close(load_text(tmp_path / "saved")(["a fox"])[0], expected)


STARFLOW = ["--checkpoint", "{parts}/t2i.pth", "--config", "{parts}/t2i.yaml"]
STARFLOW += ["--autoencoder", "{parts}/kl", "--text", "{parts}/t5"]


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--checkpoint", "{parts}/t2i.pth"], "holds a STARFlow, which takes more than its weights"),
        (["--checkpoint", "{parts}/t2i.pth", "--config", "{parts}/none.yaml"], "there is no configuration"),
        (["--checkpoint", "{parts}/none.pth"], "there is no checkpoint"),
        (["--checkpoint", "{parts}/t2i.yaml"], "is a configuration, not weights"),
        (["--checkpoint", "{parts}/t2i.pth", "--dtype", "int4"], "dtype must be one of"),
        (["--checkpoint", "{parts}/t2i.pth", "--config", "{parts}/t2i.pth"], "is a file of weights"),
        (["--checkpoint", "{parts}/tar.pth"], "do not tell its patch size"),
        (["--checkpoint", "{parts}/tar.pth", "--patch-size", "2"], "nothing tells the noise"),
        (["--checkpoint", "{parts}/tar.pth", "--autoencoder", "{parts}/kl"], "--autoencoder goes with a STARFlow"),
        (["--checkpoint", "{parts}/tar.pth", "--text", "{parts}/t5"], "--text goes with a STARFlow"),
        ([*STARFLOW, "--labels", "{parts}/names.txt"], "--labels goes with a TARFlow"),
        ([*STARFLOW, "--patch-size", "2"], "--patch_size goes with a TARFlow"),
        (["--checkpoint", "{parts}/tar.pth", "--patch-size", "2", "--noise", "-1"], "noise must lie in"),
    ],
)
def test_mistakes(parts, tmp_path, arguments, answer):
    torch.save(stand_ins.weights(stand_ins.tarflow_shapes()), parts / "tar.pth")
    with pytest.raises(SystemExit, match=answer):
        main(["convert", *(word.format(parts=parts) for word in arguments), "--output", f"{tmp_path}/model"])
    assert not (tmp_path / "model").exists()


def test_parts_that_do_not_go_together(parts, tmp_path):
    with pytest.raises(SystemExit, match="is inconsistent: its autoencoder makes latents"):
        converted(parts, "t2i", "wan", tmp_path / "model")
    with pytest.raises(SystemExit, match="no autoencoder can be read from a folder or hub name"):
        converted(parts, "t2i", "nowhere", tmp_path / "model")
    with pytest.raises(SystemExit, match="no encoder of text with its tokenizer can be read"):
        converted(parts, "t2i", "kl", tmp_path / "model", "--text", f"{parts}/kl")
    with pytest.raises(SystemExit, match="images of 8 × 8 alone"):
        main(["convert", "--checkpoint", f"{parts}/afhq_model_2_64_2_1_0.07.pth", "--output", f"{tmp_path}/t"])
        main(["generate", "--model", f"{tmp_path}/t", "--aspect", "16:9", "--out", f"{tmp_path}/a.png"])


PEAK = """
import resource, sys
import diffusers, transformers
from diffusers import AutoencoderKLWan
from transformers import AutoModelForTextEncoding, AutoTokenizer, T5EncoderModel
from video.commands import main

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
start = peak()
main(sys.argv[1:])
print("peak", peak() - start)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_of_converting(parts, tmp_path, dtype):
    """In GiB above the start, of a file of 1.12 GiB."""
    shapes = stand_ins.starflow_shapes(is_video=True, channels=1152, top=2432)
    torch.save(stand_ins.weights(shapes), tmp_path / "t2v.pth")
    yaml = stand_ins.T2V.replace(" channels: 64", " channels: 1152").replace("channels: 128", "channels: 2432")
    (tmp_path / "t2v.yaml").write_text(yaml)
    files = ["--config", f"{tmp_path}/t2v.yaml", "--checkpoint", f"{tmp_path}/t2v.pth", "--text", f"{parts}/t5"]
    arguments = ["convert", *files, "--autoencoder", f"{parts}/wan", "--output", f"{tmp_path}/model", "--dtype", dtype]
    run = subprocess.run([sys.executable, "-c", PEAK, *arguments], check=True, capture_output=True, text=True)
    assert float(run.stdout.split()[-1]) < 1.3
