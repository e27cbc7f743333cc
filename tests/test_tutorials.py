"""The tutorials are true: their commands run, in order, and print the numbers that stand on the pages."""

from __future__ import annotations

from pathlib import Path

import pytest
import tutorials

PAGE = """Words.

```sh
polymodal systems
```

```text
loss 1.500  12 samples  accuracy 0.25
```

```python
print(1)
```

<!-- output: differs -->
```text
a text
```

```text
no output
```
"""


def test_the_blocks_of_a_page() -> None:
    one, two = tutorials.blocks(PAGE)
    assert (one.language, one.code, one.said) == ("sh", "polymodal systems\n", "loss 1.500  12 samples  accuracy 0.25\n")
    assert (two.language, two.said, two.tolerance) == ("python", "a text\n", None)
    assert PAGE[slice(*one.span)] == one.said
    (loose,) = tutorials.blocks("```sh\nls\n```\n\n<!-- output: within 20 % -->\n```text\n100\n```\n")
    assert (loose.tolerance, loose.loose) == (0.2, True)
    assert tutorials.difference(loose, "81\n") is None and "more than 20%" in str(tutorials.difference(loose, "78\n"))


@pytest.mark.parametrize(("said", "wrong"), [
    ("loss 1.510  12 samples  accuracy 0.26", None),
    ("loss  1.500 12 samples accuracy 0.25", None),
    ("loss 1.600  12 samples  accuracy 0.25", "1.500 on the page is 1.600 now"),
    ("loss 1.500  13 samples  accuracy 0.25", "12 on the page is 13 now"),
    ("loss 1.500  12 sentences  accuracy 0.25", "the page says"),
    ("loss 1.500  12 samples  accuracy 0.25\nmore", "1 lines, the command printed 2"),
    ("", "1 lines, the command printed 0"),
    ("loss 1.500  12 samples  accuracy 0.25 in 3 s", "the page says"),
])
def test_what_counts_as_the_same_output(said: str, wrong: str | None) -> None:
    found = tutorials.difference(tutorials.blocks(PAGE)[0], said)
    assert found is None if wrong is None else wrong in str(found)


def test_times_and_speeds_are_not_compared() -> None:
    (block,) = tutorials.blocks("```sh\nls\n```\n\n```text\n20 texts in 21.7 s; 3 samples, 117.4 samples/s\n```\n")
    assert tutorials.difference(block, "20 texts in 1 s; 3 samples, 9 samples/s") is None
    assert tutorials.difference(block, "20 texts in 1 s; 4 samples, 9 samples/s") is not None


def test_small_numbers_are_compared_by_their_exponents() -> None:
    assert tutorials.near("2e-07", "3e-07", 0.02, False) and not tutorials.near("2e-07", "2e-05", 0.02, False)
    assert tutorials.near("-0.01", "0.00", 0.02, False) and not tutorials.near("-0.5", "0.5", 0.02, False)


def test_an_output_that_differs_must_still_be_there() -> None:
    block = tutorials.blocks(PAGE)[1]
    assert tutorials.difference(block, "anything\n") is None and tutorials.difference(block, "\n") == "nothing was printed"


def test_every_page_shows_what_its_commands_print() -> None:
    for page in tutorials.PAGES:
        shown = [block for block in tutorials.blocks(page.read_text(encoding="utf-8")) if block.said is not None]
        assert len(shown) >= 4 and all((block.said or "").strip() for block in shown), f"`make tutorials` writes {page.name}"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", tutorials.PAGES, ids=lambda page: page.stem)
def test_a_page_is_true(page: Path, tmp_path: Path) -> None:
    wrong = [f"{block.code}{found}" for block, said in tutorials.walk(page, tmp_path)
             if block.said is not None and (found := tutorials.difference(block, said)) is not None]
    assert not wrong, "\n".join([*wrong, f"if the change is meant: `make tutorials PAGES={page.stem}`"])
