"""`polymodal regions`: what a grid, a detector and files make of pictures, and every way in which it ends early."""

import json

import numpy as np
import polymodal
import pytest
import torch
from packs import contents, picture, settings_of
from PIL import Image
from polymodal.pipelines.cli import run as command
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.regions import regions as module
from polymodal.pipelines.regions.codebook import Codebook, fit
from polymodal.pipelines.regions.detectors import GridWork, cell_boxes
from polymodal.pipelines.regions.regions import RegionSettings, add_regions
from polymodal.pipelines.train.inputs import read_context
from polymodal.shared.errors import UserError

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32, "patch_size": 8}


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """A ViT with 4 x 4 patches."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tower")
    polymodal.save(polymodal.system("vit", size="tiny", classes=("a", "b"), **SMALL).net, folder)
    return str(folder)


@pytest.fixture
def pairs(tmp_path):
    """Seven pictures of different shapes with captions, in three shards."""
    for n in range(7):
        picture(tmp_path / "in" / f"p{n}.png", (40 + 8 * n, 32), n)
        (tmp_path / "in" / f"p{n}.txt").write_text(f"picture {n}")
    pack([tmp_path / "in"], tmp_path / "pairs", settings_of(kind="pairs", shard_bytes=16384), workers=Workers(1))
    assert len(DataSet.open(tmp_path / "pairs").index.shards) > 1
    return tmp_path / "pairs"


def grid(tower, **options):
    return RegionSettings("grid", tower, **{"regions": 4, "classes": 3, **options})


def test_a_grid_covers_the_picture_with_means_of_patches(pairs, tower, tmp_path):
    index = add_regions(str(pairs), tmp_path / "out", grid(tower))
    assert index.schema["regions"] | {"codebook": ""} == {"detector": "grid", "features": 16, "classes": 4, "codebook": ""}
    before, after = DataSet.open(pairs), DataSet.open(tmp_path / "out")
    net, first = polymodal.load(tower), after.read(0)
    assert len(after) == 7 and [after.key_and_shard(i)[0] for i in range(7)] == [before.key_and_shard(i)[0] for i in range(7)]
    found, image = first.regions(), before.read(0).image()
    assert first.text() == before.read(0).text() and np.array_equal(np.asarray(first.image()), np.asarray(image))
    squashed = torch.from_numpy(np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)).copy()).permute(2, 0, 1)
    with torch.no_grad():
        states = net.get_patch_features((squashed[None] / 255 - 0.5) / 0.5)[0].reshape(4, 4, 16)
    assert np.allclose(found.features[1], states[:2, 2:].mean((0, 1)).numpy(), atol=0.05)  # half precision, and rounded pixels
    assert np.allclose(found.boxes, [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]])
    assert found.classes.shape == (4, 4) and not found.classes[:, 0].any()
    assert not (tmp_path / "out" / ".regions").exists()
    assert read_context([after], (), None).regions == (16, 4)


def test_cells_are_those_of_adaptive_pooling():
    """A cell's box is what torch averages for it: an average of coordinates gives the box's middle."""
    for patches, side in ((4, 4), (7, 6), (14, 6), (5, 2)):
        boxes = cell_boxes(patches, side)
        middles = (torch.arange(patches) + 0.5) / patches
        x = torch.nn.functional.adaptive_avg_pool2d(middles.expand(1, patches, patches), side)[0].numpy()
        assert np.allclose((boxes[:, 0] + boxes[:, 2]) / 2, x.ravel()) and np.allclose((boxes[:, 1] + boxes[:, 3]) / 2, x.T.ravel())
        assert boxes.min() == 0 and boxes.max() == 1


@pytest.mark.parametrize("family", ["clip", "mae"])
def test_other_towers_have_patches_too(family):
    net = polymodal.system(family, size="tiny").net.eval()
    side = net.preprocessing.image_size
    found = net.get_patch_features(torch.randn(2, 3, side, side))
    assert found.shape[0] == 2 and int(found.shape[1] ** 0.5) ** 2 == found.shape[1]
    resnet = polymodal.system("clip", size="tiny-resnet").net.eval()
    states, pixels = resnet.get_patch_features(torch.ones(1, 3, 64, 64)), torch.ones(1, 3, 64, 64)
    assert torch.equal(states[0, 1], resnet.image_trunk(pixels)[0, :, 0, 1])


def test_held_out_data_gets_the_same_classes_by_the_same_codebook(pairs, tower, tmp_path):
    add_regions(str(pairs), tmp_path / "a", grid(tower))
    add_regions(str(pairs), tmp_path / "b", grid(tower, codebook=str(tmp_path / "a"), classes=9))
    a, b = DataSet.open(tmp_path / "a"), DataSet.open(tmp_path / "b")
    assert a.fingerprint == b.fingerprint and a.index.schema["regions"] == b.index.schema["regions"]
    add_regions(str(pairs), tmp_path / "c", grid(tower, classes=2))
    with pytest.raises(UserError, match=r"the regions of the data sets differ.*one --codebook"):
        read_context([a, DataSet.open(tmp_path / "c")], (), None)
    add_regions(str(pairs), tmp_path / "d", grid(tower, classes=0))
    assert DataSet.open(tmp_path / "d").read(0).regions().classes is None


def test_a_codebook_finds_clusters_and_says_how_sure_it_is():
    draws = torch.Generator().manual_seed(1)
    true = 10 * torch.randn(5, 8, generator=draws)
    labels = torch.randint(5, (500,), generator=draws)
    book = fit(true[labels] + 0.1 * torch.randn(500, 8, generator=draws), 5)
    assert float(torch.cdist(true, book.centres).amin(1).max()) < 0.1
    found = book.probabilities(true[labels])
    assert found.shape == (500, 6) and not found[:, 0].any() and torch.allclose(found.sum(1), torch.ones(500))
    assert len({(int(a), int(b)) for a, b in zip(labels, found.argmax(1))}) == 5
    nearest = torch.cdist(true[labels], book.centres).square().topk(2, largest=False).values
    ratio = found.sort(1).values
    assert torch.allclose((ratio[:, -1] / ratio[:, -2]).log(), (nearest[:, 1] - nearest[:, 0]) / book.temperature, rtol=1e-3)
    with pytest.raises(UserError, match="--classes 7 needs as many regions"):
        fit(true, 7)


def test_a_killed_run_continues_and_gives_the_same_bytes(pairs, tower, tmp_path, monkeypatch):
    add_regions(str(pairs), tmp_path / "whole", grid(tower))
    real, calls = module._write, []

    def dies(order, number):
        calls.append(number)
        if number == 1 and len(calls) == 2:
            raise KeyboardInterrupt
        real(order, number)

    monkeypatch.setattr(module, "_write", dies)
    with pytest.raises(KeyboardInterrupt):
        add_regions(str(pairs), tmp_path / "out", grid(tower))
    assert not (tmp_path / "out" / "index.json").exists() and not list((tmp_path / "out").glob("*.tar"))
    add_regions(str(pairs), tmp_path / "out", grid(tower))
    assert calls.count(0) == 1 and calls.count(1) == 2
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(("options", "message"), [
    ({"regions": 5}, "a grid has a square number of them, such as 4 or 9"),
    ({"regions": 25}, "the tower has 16 patches: ask for at most 16"),
    ({"regions": 0}, "a picture has at least 1"),
    ({"tower": None}, "name one with --tower"),
    ({"codebook": "nowhere"}, "--codebook nowhere: no codebook there"),
    ({"classes": 1000}, "--classes 1000 needs as many regions"),
    ({"on_bad": "ignore"}, "expected raise or skip"),
])
def test_what_cannot_be_done_is_told_and_nothing_is_left(pairs, tower, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        add_regions(str(pairs), tmp_path / "out", grid(**{"tower": tower, **options}))
    assert not (tmp_path / "out").exists()


def test_other_detectors_and_folders_that_do_not_fit(pairs, tower, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    for detector, message in (("torchvision:fasterrcnn_resnet50_fpn", "no weights here, and none are downloaded: put fasterrcnn_resnet50"),
                              ("torchvision:resnet18", "is unknown, expected one of"), ("nowhere", "is no folder with KEY.npz")):
        with pytest.raises(UserError, match=message):
            add_regions(str(pairs), tmp_path / "out", RegionSettings(detector))
    with pytest.raises(UserError, match="belong to --detector grid"):
        RegionSettings("nowhere", tower)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(UserError, match="not an empty folder"):
        add_regions(str(pairs), tmp_path / "full", grid(tower))
    add_regions(str(pairs), tmp_path / "once", grid(tower))
    with pytest.raises(UserError, match="has regions already"):
        add_regions(str(tmp_path / "once"), tmp_path / "twice", grid(tower))
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n')
    pack([tmp_path / "t.jsonl"], tmp_path / "texts", settings_of(), workers=Workers(1))
    with pytest.raises(UserError, match="has no pictures"):
        add_regions(str(tmp_path / "texts"), tmp_path / "out", grid(tower))
    polymodal.save(polymodal.system("bert", size="tiny", vocab_size=20).net, tmp_path / "bert")
    with pytest.raises(UserError, match="which has no patches: expected a CLIP, a ViT or an MAE"):
        add_regions(str(pairs), tmp_path / "out", grid(str(tmp_path / "bert")))


def boxes_of(count):
    return np.tile(np.array([[4, 4, 20, 16]], dtype=np.float32), (count, 1))


def test_files_made_elsewhere_are_taken_by_key_and_checked_or_counted(pairs, tmp_path, capsys):
    data, folder = DataSet.open(pairs), tmp_path / "npz"
    folder.mkdir()
    rng = np.random.default_rng(0)
    keys = [data.key_and_shard(i)[0] for i in range(7)]
    for n, key in enumerate(keys):
        count = 2 + n
        arrays = {"x": rng.normal(size=(count, 6 if n != 3 else 5)).astype(np.float32), "bbox": boxes_of(count), "image_w": np.array(40),
                  "image_h": np.array(32), "info": np.array({"never": "read"}, dtype=object)}
        if n == 4:
            arrays["bbox"] = arrays["bbox"] * 3
        if n == 5:
            arrays["x"][0, 0] = np.nan
        np.savez(folder / f"{key}.npz", **arrays)
    (folder / f"{keys[6]}.npz").unlink()
    code = command(["regions", str(pairs), "--detector", str(folder), "--out", str(tmp_path / "out"), "--json"])
    assert code == 2 and not (tmp_path / "out").exists()
    assert len(capsys.readouterr().err.strip().splitlines()[-1].split(": ")) > 2
    code = command(["regions", str(pairs), "--detector", str(folder), "--regions", "3", "--out", str(tmp_path / "out"), "--on-bad", "skip",
                    "--json"])
    record = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert code == 0 and record["samples"] == 3 and record["schema"]["skipped"] == 4
    assert record["schema"]["regions"] == {"detector": "files", "features": 6, "classes": 0}
    found = DataSet.open(tmp_path / "out").read(2).regions()
    assert len(found.features) == 3 and np.allclose(found.boxes[0], [0.1, 0.125, 0.5, 0.5])


@pytest.mark.slow
def test_a_detector_of_torchvision_gives_its_best_proposals(pairs, tmp_path, monkeypatch):
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn as make
    from torchvision.ops import box_iou

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    torch.manual_seed(0)
    net = make(weights=None, weights_backbone=None).eval()
    (tmp_path / "hub" / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(net.state_dict(), tmp_path / "hub" / "hub" / "checkpoints" / "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth")
    index = add_regions(str(pairs), tmp_path / "out", RegionSettings("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", regions=5))
    assert index.schema["regions"] == {"detector": "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", "features": 1024, "classes": 91}
    found = DataSet.open(tmp_path / "out").read(0).regions()
    assert found.features.shape == (5, 1024) and found.classes.shape == (5, 91)
    assert (np.diff(found.classes[:, 1:].max(1)) <= 1e-3).all()  # the best first
    overlaps = box_iou(torch.from_numpy(found.boxes), torch.from_numpy(found.boxes)).fill_diagonal_(0)
    assert float(overlaps.max()) <= 0.7 + 1e-3


def test_pictures_that_cannot_be_read_are_told_or_counted(pairs, tower, tmp_path):
    whole = DataSet.open(pairs).index.shards[0]
    path = pairs / whole.name
    damaged = bytearray(path.read_bytes())
    at = damaged.index(b"\x89PNG")
    damaged[at + 60] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"its bytes changed after indexing.*--on-bad skip"):
        add_regions(str(pairs), tmp_path / "out", grid(tower))
    assert not (tmp_path / "out").exists()
    assert add_regions(str(pairs), tmp_path / "out", grid(tower, on_bad="skip")).schema["skipped"] == 1


def test_the_grid_refuses_a_codebook_of_another_width(tower, tmp_path):
    Codebook(torch.zeros(2, 7), 1.0).save(tmp_path / "book.safetensors")
    with pytest.raises(UserError, match="features of width 7, the tower's have 16"):
        GridWork(tower, 4, str(tmp_path / "book.safetensors")).open("cpu")
