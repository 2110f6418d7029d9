"""The models and workloads of the benchmark of the engine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from engine_bench.models import MODELS, Linear, make_model
from engine_bench.workloads import WORKLOADS, Lengths, workload


@pytest.mark.usefixtures("_transformers_as_before")
class TestTheModels:
    @pytest.mark.parametrize("name", ["tiny", "tiny-llama"])
    def test_the_linear_layers_of_a_shape_are_those_of_the_model(self, name: str, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
        make_model(MODELS[name], tmp_path, seed=0)
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        linears: Counter[tuple[int, int]] = Counter()
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear):
                linears[layer.in_features, layer.out_features] += 1
            elif type(layer).__name__ == "Conv1D":
                linears[layer.nx, layer.nf] += 1
        shape = MODELS[name]
        assert linears == _by_shape((*shape.layer_linears, shape.head))

    def test_the_llama_has_about_100_million_parameters(self) -> None:
        shape = MODELS["llama"]
        weights = sum(linear.count * linear.inputs * linear.outputs for linear in (*shape.layer_linears, shape.head))
        assert weights == pytest.approx(100e6, rel=0.01)


def _by_shape(linears: tuple[Linear, ...]) -> Counter[tuple[int, int]]:
    counted: Counter[tuple[int, int]] = Counter()
    for linear in linears:
        counted[linear.shape] += linear.count
    return counted


class TestTheWorkloads:
    @pytest.mark.parametrize("name", WORKLOADS)
    def test_a_seed_gives_the_same_requests_again_and_another_seed_others(self, name: str) -> None:
        made = workload(name, 20, seed=3)
        assert made == workload(name, 20, seed=3)
        assert made.requests(500, 1) == workload(name, 20, seed=3).requests(500, 1)
        assert made.requests(500, 1) != workload(name, 20, seed=4).requests(500, 1)

    @pytest.mark.parametrize("name", WORKLOADS)
    def test_rounds_have_the_same_lengths_and_other_tokens(self, name: str) -> None:
        made = workload(name, 20, seed=0)
        first, second = made.requests(500, 0), made.requests(500, 1)
        assert [Lengths(len(one.prompt_ids), one.output_tokens) for one in first] == [*made.rows]
        assert [len(one.prompt_ids) for one in first] == [len(one.prompt_ids) for one in second]
        assert all(one.prompt_ids != other.prompt_ids for one, other in zip(first, second, strict=True))
        assert all(3 <= token < 500 for one in first for token in one.prompt_ids)

    @pytest.mark.parametrize("requests", [32, 128])
    def test_mixed_lengths_have_their_mean_and_their_tail(self, requests: int) -> None:
        made = workload("mixed", requests, seed=0)
        assert made.prompt_tokens / requests == pytest.approx(61, abs=1.5)
        assert made.output_tokens / requests == pytest.approx(71, abs=1.5)
        assert 240 <= max(row.output for row in made.rows) <= 256

    def test_prompts_share_their_template_and_nothing_more(self) -> None:
        made = workload("shared-prefix", 30, seed=0)
        prompts = [one.prompt_ids for one in made.requests(50257, 0)]
        assert len({tuple(prompt[:150]) for prompt in prompts}) == 1
        assert len({prompt[150] for prompt in prompts}) > 1
        assert {row.output for row in made.rows} == {32}
        assert (min(map(len, prompts)), max(map(len, prompts))) == (150 + 20, 150 + 60)

    @pytest.mark.parametrize(("model", "name"), [(model, name) for model in MODELS for name in WORKLOADS])
    def test_every_request_fits_into_the_context_of_every_model(self, model: str, name: str) -> None:
        longest = max(row.total for row in workload(name, 128, seed=0).rows)
        assert longest <= MODELS[model].context
