"""Before any training: which recipe, and whether data, settings and machine agree. Each refusal is one line."""

import os
from datetime import timedelta

from model.config import ModelConfig
from pipeline.dataset import Catalogue, PackedDataset
from train.config import TrainConfig, load_recipe, recipe_names

CPU_RECIPE = "demo"
LARGEST_CPU_PARAMETERS = 50_000_000
CPU_FLOPS_PER_CORE = 50e9
"""A rough figure for float32 matrix work, to say how long a large model would take."""


def choose_recipe(data: str, *, device_type: str) -> tuple[str, str]:
    """The recipe for a run that names none, and a sentence that says why.

    On CUDA the one whose tokenizer and document rule are the dataset's; on a CPU the demo. Raises FileNotFoundError
    where there is no dataset.
    """
    content = Catalogue(data).content
    tokenizer = content["tokenizer"]["name"]
    fitting = [name for name in recipe_names() if name != CPU_RECIPE and _fits(load_recipe(name), content)]
    if not fitting:
        rule = content["document_rule"]
        return CPU_RECIPE, f"recipe {CPU_RECIPE}, as on a GPU: no other is for tokenizer {tokenizer} and {rule}"
    if device_type == "cuda":
        return fitting[0], f"recipe {fitting[0]}: it is for tokenizer {tokenizer}, which {data} has"
    return CPU_RECIPE, f"recipe {CPU_RECIPE}: there is no GPU; on one this data would take {fitting[0]}"


def refuse_data(config: TrainConfig, dataset: PackedDataset) -> None:
    """Raises ValueError if the dataset's tokenizer or document rule is not the recipe's."""
    name, sha256 = dataset.tokenizer["name"], dataset.tokenizer["sha256"]
    if config.tokenizer not in ("any", name, sha256):
        raise ValueError(
            f"{config.data} has tokenizer {name} ({sha256[:12]}), recipe {config.recipe} wants {config.tokenizer}:"
            f" build the data with --tokenizer {config.tokenizer}, or train with --recipe {CPU_RECIPE}"
            f" or --tokenizer {name}"
        )
    if config.document_rule not in ("any", dataset.document_rule):
        raise ValueError(
            f"{config.data} has document rule {dataset.document_rule}, recipe {config.recipe} wants"
            f" {config.document_rule}: build the data with --document-rule {config.document_rule},"
            f" or train with --document-rule {dataset.document_rule}"
        )


def refuse_cpu(config: TrainConfig, model_config: ModelConfig, *, device_type: str) -> None:
    """Raises ValueError if a large model would train on a CPU that nobody asked for."""
    num_parameters = model_config.num_parameters()
    if device_type != "cpu" or config.device == "cpu" or num_parameters <= LARGEST_CPU_PARAMETERS:
        return
    raise ValueError(
        f"recipe {config.recipe} has {num_parameters / 1e6:,.0f}M parameters and needs a GPU, and torch sees none:"
        f" here it would take about {_time_on_cpu(config, model_config)}. --device cpu goes on all the same,"
        f" --recipe {CPU_RECIPE} is for CPUs"
    )


def _fits(config: TrainConfig, content: dict) -> bool:
    """Whether a recipe wants the tokenizer and the document rule that a dataset.json names."""
    tokenizer = content["tokenizer"]
    is_tokenizer = config.tokenizer in (tokenizer["name"], tokenizer["sha256"])
    return is_tokenizer and config.document_rule in ("any", content["document_rule"])


def _time_on_cpu(config: TrainConfig, model_config: ModelConfig) -> str:
    """How long the run would take on this machine's cores, in years or days."""
    flops = config.num_steps * config.tokens_per_step * model_config.flops_per_token(config.seq_len)
    days = flops / (CPU_FLOPS_PER_CORE * (os.cpu_count() or 1)) / timedelta(days=1).total_seconds()
    return f"{days / 365:,.0f} years" if days > 730 else f"{max(days, 1):,.0f} days"
