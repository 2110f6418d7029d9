"""The demo's products, template and model, as they are shipped."""

import csv
import re
import string
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parents[3] / "ops" / "demo_data"
MODEL = DATA / "model"
COLUMNS = ["id", "name", "category", "features", "tone", "price"]


@pytest.fixture(scope="module")
def products() -> list[dict[str, str]]:
    with (DATA / "products.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def template() -> str:
    return (DATA / "template.txt").read_text(encoding="utf-8").removesuffix("\n")


@pytest.fixture(scope="module")
def some(products: list[dict[str, str]]) -> list[dict[str, str]]:
    return products[::17]


@pytest.fixture(scope="module")
def copies(some: list[dict[str, str]], template: str) -> list[str]:
    """Greedy copy of some products, a padded batch generated in float32."""
    torch = pytest.importorskip("torch")
    transformers: Any = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    prompts = [template.format(**product) for product in some]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    output = model.generate(**inputs, max_new_tokens=80, do_sample=False)
    texts: list[str] = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def test_there_are_enough_products_and_every_row_is_whole(products: list[dict[str, str]]) -> None:
    assert len(products) >= 320
    assert all(list(row) == COLUMNS and all(value.strip() for value in row.values()) for row in products)
    assert all(re.fullmatch(r"\d+\.\d\d", row["price"]) for row in products)


def test_ids_and_names_are_unique(products: list[dict[str, str]]) -> None:
    assert len({row["id"] for row in products}) == len(products)
    assert len({row["name"] for row in products}) == len(products)


def test_products_vary_in_category_and_tone(products: list[dict[str, str]]) -> None:
    assert len({row["category"] for row in products}) >= 16
    assert len({row["tone"] for row in products}) >= 6


def test_template_fields_are_columns(template: str) -> None:
    fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    assert fields == set(COLUMNS) - {"id"}


def test_model_is_small_and_has_no_code() -> None:
    files = sorted(path.name for path in MODEL.iterdir())
    assert files == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 8_000_000


def test_copy_mentions_its_product_and_price(some: list[dict[str, str]], copies: list[str]) -> None:
    named = [row["name"] in text and row["price"] in text for row, text in zip(some, copies, strict=True)]
    assert sum(named) >= 0.85 * len(named), copies


def test_copies_are_all_different_and_end_in_a_full_stop(copies: list[str]) -> None:
    assert len(set(copies)) == len(copies)
    assert all(text.strip() == text and text.endswith(".") for text in copies), copies
    assert len({" ".join(text.split()[:3]) for text in copies}) > len(copies) / 2
