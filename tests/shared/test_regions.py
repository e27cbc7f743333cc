"""Regions as the fields of a sample: there and back, and every way in which they can be wrong."""

import io

import numpy as np
import pytest
from polymodal.shared.errors import BadSample
from polymodal.shared.regions import BOXES_FIELD, CLASSES_FIELD, FEATURES_FIELD, Regions, array_bytes
from polymodal.shared.sample import Sample


def regions(count=3, width=5, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.5, (count, 2))
    chances = rng.random((count, classes)) + 0.1
    return Regions(rng.normal(size=(count, width)).astype(np.float32),
                   np.concatenate([low, low + rng.uniform(0, 0.5, (count, 2))], axis=1).astype(np.float32),
                   (chances / chances.sum(1, keepdims=True)).astype(np.float32))


def sample(found, **changed):
    return Sample("a", {**found.fields(), **{f"{name}.npy": data for name, data in changed.items()}}, source="here")


def test_they_come_back_in_half_precision_and_the_boxes_in_single():
    before = regions()
    after = sample(before).regions()
    assert np.array_equal(after.boxes, before.boxes) and after.features.dtype == after.classes.dtype == np.float32
    assert np.allclose(after.features, before.features, rtol=1e-3) and np.allclose(after.classes, before.classes, atol=1e-3)
    bare = sample(before._replace(classes=None))
    assert bare.regions().classes is None and CLASSES_FIELD not in bare.fields
    assert len(before.first(2).features) == len(before.first(2).boxes) == len(before.first(2).classes) == 2


def test_a_location_is_the_box_its_sides_and_its_area():
    box = np.array([[0.1, 0.2, 0.6, 0.9]], dtype=np.float32)
    found = Regions(np.zeros((1, 2), np.float32), box).locations
    assert found.shape == (1, 7) and np.allclose(found[0], [0.1, 0.2, 0.6, 0.9, 0.5, 0.7, 0.35])


@pytest.mark.parametrize(("change", "message"), [
    ({"features": np.zeros((0, 5)), "boxes": np.zeros((0, 4)), "classes": None}, "0 regions"),
    ({"features": np.zeros(5)}, "expected \\[R, D\\]"),
    ({"boxes": np.zeros((2, 4))}, "boxes are \\[2, 4\\], expected \\[3, 4\\]"),
    ({"boxes": np.array([[0, 0, 1, 1], [0, 0, 1.2, 1], [0, 0, 1, 1]])}, "box of region 1 is \\[0.0, 0.0, 1.2, 1.0\\], outside the picture"),
    ({"boxes": np.array([[0, 0, 1, 1], [0, 0, 1, 1], [-0.1, 0, 1, 1]])}, "box of region 2"),
    ({"boxes": np.array([[0.5, 0, 0.4, 1], [0, 0, 1, 1], [0, 0, 1, 1]])}, "expected left <= right"),
    ({"features": np.array([[0, 0], [0, np.nan], [0, 0]])}, "a feature of region 1 is not a finite number"),
    ({"features": np.array([[0, 0], [0, 1e6], [0, 0]])}, "a feature of region 1 is not a finite number"),
    ({"boxes": np.full((3, 4), np.inf)}, "a box of region 0 is not a finite number"),
    ({"classes": np.full((3, 4), 0.5)}, "add up to 2"),
    ({"classes": np.array([[1.5, -0.5]] * 3)}, "expected none below 0"),
    ({"classes": np.full((2, 4), 0.25)}, "class probabilities are \\[2, 4\\]"),
])
def test_what_is_wrong_is_told_with_the_sample(change, message):
    wrong = sample(regions()._replace(**change))
    with pytest.raises(BadSample, match=f"sample 'a' of here: .*{message}"):
        wrong.regions()


def test_fields_that_are_missing_or_no_arrays_are_told():
    with pytest.raises(BadSample, match=r"no field 'regions.npy' and no 'boxes.npy'.*polymodal regions"):
        Sample("a", {"png": b""}, source="here").regions()
    with pytest.raises(BadSample, match=r"'boxes.npy' cannot be read as npy"):
        sample(regions(), boxes=b"\x93NUMPY").regions()
    with pytest.raises(BadSample, match="holds int64, expected floating-point"):
        sample(regions(), regions=array_bytes(np.zeros((3, 5), dtype=np.int64))).regions()
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(BadSample, match=r"'regions.npy' cannot be read as npy"):
        sample(regions(), regions=pickled.getvalue()).regions()
    assert set(sample(regions()).fields) == {FEATURES_FIELD, BOXES_FIELD, CLASSES_FIELD}
