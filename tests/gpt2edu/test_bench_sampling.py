"""The bench of sampling, at toy size on a CPU: both loops make the text that the model makes."""

import pytest
import torch

from gpt2edu import bench, bench_sampling
from gpt2edu.config import ModelConfig
from gpt2edu.model import GPT2
from gpt2edu.results import load_results
from gpt2edu.sample import generate

CONFIG = ModelConfig.from_descriptor("d2,h2,c32,t8,v61")
CPU = torch.device("cpu")


def test_the_baseline_makes_the_text_of_the_model():
    model = GPT2(CONFIG)
    model.init_weights()
    model.flat_parameters *= 8
    model.flat_parameters.copy_(model.flat_parameters.bfloat16())
    loop = bench_sampling.StaticCacheLoop(CONFIG, model.flat_parameters, CPU)
    first = bench_sampling.FIRST_TOKEN
    with torch.no_grad():
        text = loop.text()
    assert text == [first, *generate(model, [first], 7, temperature=0)]
    assert len(set(text)) > 3


@pytest.mark.slow
def test_sampling_writes_a_results_file(tmp_path):
    arguments = ["sampling", "--device", "cpu", "-e", "d1,h2,c16,t3,v61", "--texts", "1", "--output", str(tmp_path)]
    assert bench.main(arguments) == 0
    (found,) = load_results("sampling", tmp_path)
    numba, baseline = found.rows
    assert (numba["variant"], baseline["variant"]) == ("numba", "torch")
    assert numba["shape"] == {"B": 1, "T": 3, "L": 1, "C": 16, "V": 61}
    assert numba["tokens_per_s"] == pytest.approx(1e3 / numba["median_ms"], rel=1e-3)
    assert baseline["torch_ratio"] == 1
    assert numba["max_error"] <= 2 * numba["baseline_error"]
