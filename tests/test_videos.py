"""Videos: frames, contact sheets, GIF files, and metrics over frames."""

import copy
import io
import pickle
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

import neuroscope as ns
from neuroscope.core.videos import Video
from neuroscope.evaluation import generate
from neuroscope.generation.batches import Row, Sweep, bytes_an_image
from neuroscope.metrics.metric import scores_of
from neuroscope.report import plots
from tests.families import tiny

FAMILIES = ("animatediff", "ltx", "wan")
SMALL = {"num_inference_steps": 1, "guidance_scale": 1.0, "height": 32, "width": 32, "num_frames": 5}


@cache
def graph_of(family: str) -> ns.HookGraph:
    return ns.HookGraph(tiny.PIPELINES[family]())


def grey(level: int) -> Image.Image:
    return Image.new("RGB", (8, 4), (level, level, level))


def video(*levels: int, rate: float = 8.0) -> Video:
    return Video.of([grey(level) for level in levels], rate)


class Brightness:
    """A metric: the mean level of an image's pixels."""

    name = "brightness"

    def __call__(self, images, prompts):
        assert len(images) == len(prompts)
        return np.array([np.asarray(each).mean() for each in images])


class Motion(Brightness):
    """A metric that reads whole videos: how far the last frame is from the first."""

    whole_videos = True

    def __call__(self, images, prompts):
        return np.array([abs(np.asarray(each.frames[-1], float) - np.asarray(each.frames[0], float)).mean() for each in images])


@pytest.mark.parametrize(
    ("count", "size", "shown"),
    [(1, (8, 4), [0]), (3, (24, 4), [0, 1, 2]), (4, (24, 8), [0, 1, 2, 3]), (81, (24, 8), [0, 16, 32, 48, 64, 80])],
)
def test_a_contact_sheet_shows_frames_from_the_first_to_the_last(count, size, shown):
    made = video(*range(count))
    assert made.size == size
    corners = [made.getpixel((8 * (number % 3), 4 * (number // 3)))[0] for number in range(len(shown))]
    assert corners == shown


def test_copies_and_other_processes_have_the_frames():
    made = video(0, 100, 200)
    made.info["prompt"] = "a star"
    for found in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert isinstance(found, Video)
        assert [each.getpixel((0, 0))[0] for each in found.frames] == [0, 100, 200]
        assert (found.rate, found.tobytes(), found.info["prompt"]) == (8.0, made.tobytes(), "a star")
    assert made.seconds == 3 / 8


def test_a_gif_file_holds_the_frames_at_their_rate():
    with Image.open(io.BytesIO(video(0, 100, 200).gif())) as file:
        assert (file.format, file.n_frames, file.info["duration"], file.info["loop"]) == ("GIF", 3, 120, 0)
        levels = []
        for number in range(3):
            file.seek(number)
            levels.append(file.convert("RGB").getpixel((0, 0))[0])
    assert levels == [0, 100, 200]


def test_a_video_has_the_mean_of_its_frames_scores_unless_the_metric_reads_it_whole():
    images = [video(0, 100), grey(30), video(50, 60, 70)]
    assert scores_of(Brightness(), images, ["a", "b", "c"]) == [50.0, 30.0, 60.0]
    assert scores_of(Brightness(), images[1:2], ["b"]) == [30.0]
    assert scores_of(Motion(), [images[0], images[2]], ["a", "c"]) == [100.0, 20.0]


def test_shares_of_videos_count_all_frames():
    """Also those that no contact sheet shows."""
    source, target = ([level] * 9 for level in (0, 200))
    run = [200 if number == 1 else 0 for number in range(9)]
    assert ns.ImageShare()(*(video(*each) for each in (run, source, target))) == pytest.approx(1 / 9)


def test_clip_scores_frames():
    frames = [Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)) for seed in range(3)]
    metric = ns.ClipScore("a red circle", "testbed:clip")
    alone = metric(frames, [""] * 3)
    assert scores_of(metric, [Video.of(frames, 8.0)], [""]) == pytest.approx([alone.mean()])


def test_contact_sheets_show_videos(tmp_path):
    shown = plots.images({"a star": [video(0, 100, 200), video(50, 60, 70)]}, ["untouched", "masked"])
    shown.figure.savefig(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 100


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_makes_the_pipelines_own_videos(family):
    """From either space, frame by frame."""
    graph = graph_of(family)
    (made,) = generate(graph, None, [tiny.PROMPT], [3], **SMALL)
    (frames,) = graph.pipe(tiny.PROMPT, generator=[torch.Generator().manual_seed(3)], output_type="pil", **SMALL).frames
    assert [each.tobytes() for each in made.frames] == [each.tobytes() for each in frames]
    assert len(made.frames) == 5
    assert made.info["prompt"] == tiny.PROMPT
    sweep = Sweep(graph, [tiny.PROMPT], SMALL, space="latent")
    ((_, latents),) = sweep.run([Row(tiny.PROMPT, 3)])
    assert sweep.images(latents)[0].tobytes() == made.tobytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_videos_are_evaluated(family):
    graph = graph_of(family)
    (site,) = graph.sites.where(layer=5, role="value")
    mask = ns.NeuronMask(ns.Neurons.at(graph.sites, {site.path: range(site.width // 2)}), fill=2.0)
    table = ns.evaluate(graph, {"mask": mask}, [tiny.PROMPT], [0], [Brightness()], quiet=True, controls=False, **SMALL)
    (masked,) = generate(graph, mask, [tiny.PROMPT], [0], **SMALL)
    assert table["score"].tolist() == pytest.approx([np.mean([np.asarray(frame).mean() for frame in masked.frames])])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_longer_or_larger_video_takes_more_memory(family):
    graph = graph_of(family)
    base, longer, larger = (bytes_an_image(graph, side, side, frames) for side, frames in ((32, 3), (32, 9), (64, 3)))
    assert longer > 1.5 * base
    assert larger > 3 * base
