"""What pairs are compared with: retrieval beside the plain formula, rewrites, and the data set that holds them."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from polymodal.multimodal.unimo_data import near_pictures
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.data.index import build_index
from polymodal.pipelines.pack.relate import RelateSettings, Retrieval, Rewriter, classes_of, relate, words
from polymodal.pipelines.pack.writer import ShardWriter
from polymodal.shared.errors import UserError
from region_samples import CLASSES, WIDTH, regions

CAPTIONS = ["a red boat on the sea", "a blue boat on the sea", "a red car on the street", "a blue car in the street",
            "a dog under the table"]
LINES = ["The sea is blue. A boat sails.", "Cars stand in the street.", "A table and a red chair! The dog sleeps under it.", "Nothing else"]


def test_the_nearest_are_those_of_the_plain_formula():
    rng = np.random.default_rng(0)
    bags = [[f"w{n}" for n in rng.integers(0, 20, int(rng.integers(1, 15)))] for _ in range(40)]
    vocabulary = sorted({w for bag in bags for w in bag})
    matrix = np.array([[Counter(bag)[w] for w in vocabulary] for bag in bags], dtype=float)
    matrix *= 1 + np.array([math.log(len(bags) / sum(w in bag for bag in bags)) for w in vocabulary])
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    made = Retrieval(bags)
    for number, bag in enumerate(bags):
        np.testing.assert_allclose(made.scores(bag), unit @ unit[number], atol=1e-12)
        assert made.nearest(bag, 3)[0] == number or made.scores(bag)[made.nearest(bag, 3)[0]] > 1 - 1e-9
    assert made.nearest(["unknown"], 3) == [] and len(made.nearest(bags[0], 100)) <= 40


def test_words_are_exchanged_for_those_that_stand_in_the_same_places():
    writer = Rewriter(CAPTIONS)
    rng = np.random.default_rng(0)
    tokens = CAPTIONS[0].split()
    assert {writer.instead(tokens, 1, rng) for _ in range(60)} == {"blue"}, "between 'a' and 'boat'"
    assert {writer.instead(tokens, 3, rng) for _ in range(60)} == {"in", "under"}, "before 'the'"
    assert {writer.instead(tokens, 5, rng) for _ in range(200)} == {"street", "table"}, "behind 'the', at the end"
    for number, text in enumerate(CAPTIONS):
        found = writer.rewrites(text, 4, np.random.default_rng(number), CAPTIONS)
        assert len(set(found)) == len(found) == 4 and not set(found) & set(CAPTIONS)
        assert all(len(line.split()) == len(text.split()) for line in found)
        assert all(sum(a != b for a, b in zip(line.split(), text.split())) in (1, 2) for line in found)
        assert found == writer.rewrites(text, 4, np.random.default_rng(number), CAPTIONS)
    assert Rewriter(["one"]).rewrites("one", 3, rng) == []


def write(folder, rows, **schema):
    folder.mkdir()
    with (folder / "0.tar").open("wb") as file:
        shard = ShardWriter(file, "0.tar")
        for number, fields in enumerate(rows):
            shard.add(f"{number:03d}", fields)
        shard.finish()
    build_index(folder, schema=schema)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("relate")
    shape = {"features": WIDTH, "classes": CLASSES}
    pairs = [{"txt": text.encode(), **regions(n, 4).fields()} for n, text in enumerate(CAPTIONS)]
    pairs[1] = {**pairs[1], "json": json.dumps({"captions": ["unused"], "key": 7}).encode()}
    several = {"json": json.dumps({"captions": ["a cat", "the cat"]}).encode(), **regions(9, 3).fields()}
    return {
        "pairs": write(root / "pairs", [*pairs, several], regions=shape),
        "texts": write(root / "texts", [{"txt": t.encode()} for t in LINES]),
        "pictures": write(root / "pictures", [regions(n, 3).fields() for n in range(20, 32)], regions=shape),
        "other": write(root / "other", [regions(0, 3, classes=3).fields()], regions={"features": WIDTH, "classes": 3}),
        "plain": write(root / "plain", [regions(0, 3)._replace(classes=None).fields()], regions={"features": WIDTH, "classes": 0}),
    }


def test_pairs_get_rewrites_texts_and_pictures(data, tmp_path):
    settings = RelateSettings(rewrites=3, texts=2, pictures=2)
    made = relate(data["pairs"], tmp_path / "out", settings, texts=[data["texts"]], pictures=[data["pictures"]])
    before, after, album = (DataSet.open(place) for place in (data["pairs"], tmp_path / "out", data["pictures"]))
    assert made.samples == 6 and made.schema["related"] == {"rewrites": 3, "texts": 2, "pictures": 2}
    assert made.schema["regions"] == before.index.schema["regions"] and not (tmp_path / "out" / ".relate").exists()
    bags = [classes_of(album.read(n)) for n in range(len(album))]
    for number in range(6):
        old, new = before.read(number), after.read(number)
        assert all(new.fields[name] == content for name, content in old.fields.items() if name != "json")
        record = new.json()
        assert record["rewrites"]["same"] == (["a cat", "the cat"] if number == 5 else []) and len(record["rewrites"]["other"]) == 3
        near = list(near_pictures(new))
        expected = Retrieval(bags).nearest(classes_of(old), 2)
        assert [classes_of(one) for one in near] == [bags[i] for i in expected]
    assert after.read(1).json()["key"] == 7
    assert after.read(4).json()["related"][0] == "The dog sleeps under it." and len(after.read(0).json()["related"]) == 2
    assert set(words("The dog, a table")) == {"the", "dog", "a", "table"}
    relate(data["pairs"], tmp_path / "again", settings, texts=[data["texts"]], pictures=[data["pictures"]])
    assert all((tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes() for name in ("000000.tar", "index.json"))


def test_what_cannot_be_related_is_refused_and_nothing_is_left(data, tmp_path):
    for arguments, message in (
        ({"source": data["texts"]}, "has no regions"), ({"pictures": [data["other"]]}, "of different detectors or codebooks"),
        ({"pictures": [data["plain"]]}, "has none: find regions with classes"), ({"texts": [data["pictures"]]}, "no text"),
    ):
        source = arguments.pop("source", data["pairs"])
        with pytest.raises(UserError, match=message):
            relate(source, tmp_path / "out", RelateSettings(), **arguments)
        assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(UserError, match="is not an empty folder"):
        relate(data["pairs"], tmp_path / "full", RelateSettings())
    with pytest.raises(UserError, match="--rewrites is -1"):
        RelateSettings(rewrites=-1)
