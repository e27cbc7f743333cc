import pytest
import torch
from polymodal.shared.convert import (
    Alias,
    Fuse,
    Ignore,
    Legacy,
    Rename,
    Reshape,
    Rule,
    Split,
    Tied,
    Transpose,
    affine,
    fused,
    layers,
    prefixed,
    to_ours,
    to_theirs,
)
from polymodal.shared.errors import UserError

RULES: tuple[Rule, ...] = (
    Rename("word", "embed.word"),
    *affine("norm", "embed.norm"),
    *layers(2, (
        *fused(("l.{i}.q", "l.{i}.k", "l.{i}.v"), "b.{i}.qkv"),
        Transpose("l.{i}.fc", "b.{i}.up"),
    )),
    Fuse(("small", "large"), "both", dim=1, sizes=(1, 3)),
    Split("in_proj", ("cross.q", "cross.kv"), sizes=(2, 4)),
    Reshape("patch", "patch", their_shape=(-1, 3, 2, 2), our_shape=(-1, 12), permute=(0, 2, 3, 1)),
    Alias("decoder", "word"),
    Alias("bias_twin", "norm.bias", written=True),
    Ignore(r"l\.\d+\.index"),
    Legacy(r"\.gamma$", ".weight"),
)


def theirs() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)

    def r(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    state = {"word": r(5, 4), "norm.weight": r(4), "norm.bias": r(4), "small": r(2, 1), "large": r(2, 3), "in_proj": r(6, 4)}
    state |= {"patch": r(4, 3, 2, 2)}
    for i in range(2):
        state |= {f"l.{i}.{n}.weight": r(4, 4) for n in "qkv"}
        state |= {f"l.{i}.{n}.bias": r(4) for n in "qkv"} | {f"l.{i}.fc": r(4, 8)}
    return state


def test_each_rule_does_what_it_says():
    state = theirs()
    ours = to_ours(RULES, state)
    assert torch.equal(ours["b.1.qkv.weight"], torch.cat([state[f"l.1.{n}.weight"] for n in "qkv"]))
    assert torch.equal(ours["b.0.up"], state["l.0.fc"].t())
    assert torch.equal(ours["both"], torch.cat([state["small"], state["large"]], 1))
    assert torch.equal(ours["cross.kv"], state["in_proj"][2:])
    assert torch.equal(ours["patch"][1], state["patch"][1].permute(1, 2, 0).reshape(-1))
    assert all(t.is_contiguous() for t in ours.values())


def test_there_and_back_is_the_same():
    state = theirs()
    back = to_theirs(RULES, to_ours(RULES, state))
    assert back.pop("bias_twin").equal(state["norm.bias"])
    assert back.keys() == state.keys()
    for key, tensor in state.items():
        assert torch.equal(back[key], tensor), key
    pointers = [t.untyped_storage().data_ptr() for t in back.values()]
    assert len(set(pointers)) == len(pointers)


def test_old_names_aliases_and_ignored_keys_are_read():
    state = theirs()
    state["norm.gamma"] = state.pop("norm.weight")
    state |= {"decoder": state["word"].clone(), "l.0.index": torch.arange(3)}
    ours = to_ours(RULES, state)
    assert torch.equal(ours["embed.norm.weight"], state["norm.gamma"])
    assert "decoder" not in ours


def test_every_kind_of_mismatch_is_listed_at_once():
    state = theirs()
    del state["l.1.k.bias"]
    state |= {"decoder": state["word"] + 1, "stranger": torch.zeros(1)}
    with pytest.raises(UserError, match=r"decoder and word are tied.*missing keys: l\.1\.k\.bias; unexpected keys: stranger"):
        to_ours(RULES, state, "the file")
    ours = to_ours(RULES, theirs())
    del ours["cross.q"]
    with pytest.raises(UserError, match=r"missing keys: cross\.q; unexpected keys: extra"):
        to_theirs(RULES, {**ours, "extra": torch.zeros(1)})


def test_a_long_list_is_cut_and_counted():
    with pytest.raises(UserError, match="and 7 more"):
        to_ours((), {f"k{i}": torch.zeros(1) for i in range(19)})


def test_prefixes_reach_every_name():
    rules = prefixed(RULES, theirs="bert.", ours="trunk.")
    state = {f"bert.{k}": v for k, v in theirs().items()}
    ours = to_ours(rules, state)
    assert all(k.startswith("trunk.") for k in ours)
    assert to_theirs(rules, ours).keys() == state.keys() | {"bert.bias_twin"}


def test_a_head_of_ours_that_shares_a_table():
    rules = prefixed((Rename("word", "embed"), Tied("head", "embed")), theirs="bert.", ours="net.")
    word = torch.randn(3, 2)
    ours = to_ours(rules, {"bert.word": word})
    assert ours["net.head"] is ours["net.embed"]
    assert to_theirs(rules, ours).keys() == {"bert.word"}


def test_layers_nest():
    rules = layers(2, layers(3, [Rename("s{s}.b{i}", "{s}/{i}")]), name="s")
    assert [r.our_keys[0] for r in rules] == [f"{s}/{i}" for s in range(2) for i in range(3)]
