"""Labels, pairs and targets from the columns of tables."""

import pytest
from packs import picture, refused, rows_of, write_table
from polymodal.pipelines import cli
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.shared.tokenizer import Tokenizer


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_labels_pairs_and_targets_come_from_columns(tmp_path, suffix):
    rows = [{"text": f"premise {i}", "second": f"hypothesis {i}", "out": f"answer {i}", "label": ("no", "maybe", "yes")[i % 3]}
            for i in range(12)]
    table = write_table(tmp_path / f"t{suffix}", rows)
    pack(table, tmp_path / "data", PackSettings(Reading(label_field="label", pair_field="second", target_field="out"),
                                                shuffle=1, holdout=0.4, holdout_out=tmp_path / "held"))
    found = []
    for side in ("data", "held"):
        samples, classes = rows_of(tmp_path / side)
        assert classes == ["maybe", "no", "yes"], "both sides share the list, whatever occurs in them"
        found += [(s.text(), s.pair(), s.target(), classes[s.label()]) for s in samples]
        assert all(set(s.fields) == {"txt", "pair.txt", "target.txt", "cls"} for s in samples)
    assert sorted(found) == sorted((r["text"], r["second"], r["out"], r["label"]) for r in rows)


def test_whole_numbers_keep_their_order_as_classes(tmp_path):
    table = write_table(tmp_path / "t.jsonl", [{"text": f"text {i}", "label": i} for i in (10, 9, 1, 2)])
    pack(table, tmp_path / "data", PackSettings(Reading(label_field="label"), shuffle=None))
    samples, classes = rows_of(tmp_path / "data")
    assert classes == ["1", "2", "9", "10"]
    assert [s.label() for s in samples] == [3, 2, 0, 1]


def test_a_given_list_of_classes_numbers_them_and_refuses_others(tmp_path):
    table = write_table(tmp_path / "t.csv", [{"text": "good film", "label": "pos"}])
    assert cli.invoke(["pack", str(table), "--out", str(tmp_path / "data"), "--label-field", "label", "--classes", "pos,neg"]) == 0
    samples, classes = rows_of(tmp_path / "data")
    assert (samples[0].label(), classes) == (0, ["pos", "neg"])
    refused(table, tmp_path / "b", "class 'pos', which --classes does not name", label_field="label", classes=("neg",))
    refused(table, tmp_path / "b", "names a class twice", label_field="label", classes=("pos", "pos"))
    refused(table, tmp_path / "b", "with --label-field: give that", classes=("pos",))


def test_labelled_pictures_may_take_their_classes_from_a_list(tmp_path):
    picture(tmp_path / "in" / "cat" / "1.png")
    pack(tmp_path / "in", tmp_path / "data", PackSettings(Reading(classes=("dog", "cat"))))
    samples, classes = rows_of(tmp_path / "data")
    assert (samples[0].label(), classes) == (1, ["dog", "cat"])
    refused(tmp_path / "in", tmp_path / "b", "classes are cat, which --classes does not name", classes=("dog",))


def test_columns_that_cannot_be_read_are_refused(tmp_path):
    table = write_table(tmp_path / "t.jsonl", [{"text": "a", "label": 0.5}])
    refused(table, tmp_path / "b", "no class in 'label' .a name or a whole number.", label_field="label")
    refused(table, tmp_path / "b", "no text in 'second'", pair_field="second")
    refused(table, tmp_path / "b", "leave --tokenize out, or --label-field", label_field="label",
            tokenizer=Tokenizer.train(["a b c"], "byte-bpe", 257))
    (tmp_path / "plain.txt").write_text("text")
    refused(tmp_path / "plain.txt", tmp_path / "b", "is not a table, so it has no label", label_field="label")
    pictures = picture(tmp_path / "in" / "1.png").parent
    refused(pictures, tmp_path / "b", "are packed as images", target_field="out")
