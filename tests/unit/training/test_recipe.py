"""A recipe says what it means, or is refused by the key that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

import training.grids
import training.recipes
from tests.learning import keys
from training.drafts import draft
from training.errors import RecipeError
from training.recipe import Recipe, read

SHIPPED = sorted(Path(training.recipes.__path__[0]).glob("*.toml"))
OF_GRIDS = [
    path
    for path in Path(training.grids.__path__[0]).glob("*.toml")
    if "[bundle]" in path.read_text()
]


@pytest.mark.parametrize("path", [*SHIPPED, *OF_GRIDS], ids=lambda path: path.stem)
def test_every_shipped_recipe_makes_a_manifest(path: Path) -> None:
    recipe = read(path)
    manifest = draft(recipe)
    assert manifest.name == path.stem
    assert manifest.research_only


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_tells_its_data_and_limits(path: Path) -> None:
    card = read(path).card
    assert card is not None
    assert "CC BY" in card.data or "generated" in card.data.lower()


def broken(tmp_path: Path, old: str, new: str) -> str:
    text = next(path for path in SHIPPED if path.stem == "us-breast-category").read_text()
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(RecipeError) as caught:
        read(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("epochs = 20", "epoch = 30", "training.epoch: no such key, did you mean 'epochs'?"),
        ("epochs = 20", 'epochs = "many"', "training.epochs: "),
        ('kind = "busi"', 'kind = "bussi"', "data: "),
        ("licences =", "licenses =", "data.licenses: no such key, did you mean 'licences'?"),
        ("validation =", "valdation =", "split.valdation: no such key, did you mean 'validation'"),
        ("saliency = true", "salience = true", "salience: no such key, did you mean 'saliency'"),
        ("[split]", "[splits]", "splits: no such key, did you mean 'split'?"),
        ("[split]", "[split", "no TOML"),
    ],
)
def test_a_wrong_key_is_named_with_the_one_it_resembles(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    assert said in broken(tmp_path, old, new)


def test_a_label_with_a_side_is_not_mirrored() -> None:
    told = keys("detection")
    told["bundle"]["findings"][0]["label"] = "Left lung"
    Recipe.model_validate(told)
    told["augment"] = {"flips": True}
    with pytest.raises(ValidationError, match="'Left lung' has a side"):
        Recipe.model_validate(told)


def test_nobody_stops_early_whom_nobody_judges() -> None:
    told = keys("classification")
    told["split"]["validation"] = 0.0
    told["training"]["patience"] = 3
    with pytest.raises(ValidationError, match=r"split\.validation"):
        Recipe.model_validate(told)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "grading"}, "grading is done by ordinal, not classifier"),
        ({"findings": []}, "needs 'findings'"),
        ({"grading": keys("grading")["bundle"]["grading"]}, "has no use for 'grading'"),
    ],
)
def test_a_task_has_its_own_network_and_labels(change: dict[str, object], said: str) -> None:
    told = keys("classification")
    told["bundle"] |= change
    with pytest.raises(ValidationError, match=said):
        draft(Recipe.model_validate(told))
