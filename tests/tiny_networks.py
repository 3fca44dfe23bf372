"""Tiny networks of every family, untrained, and inputs for them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    ViTConfig,
)

from afterfit.seeds import Seed, normals


def mlp(num_inputs: int, num_hidden: int, num_outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(num_inputs, num_hidden), nn.Tanh(), nn.Dropout(0.1), nn.Linear(num_hidden, num_outputs)
    )


class Greedy(nn.Sequential):
    """Runs out of memory where a micro-batch has more examples than `most`, as torch and Python say it."""

    def __init__(self, most: int, says: str, *layers: nn.Module):
        super().__init__(*layers)
        self.most, self.says = most, says

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as in the class above
        if len(input) > self.most:
            if self.says == "cpu":
                torch.empty(1 << 60, dtype=torch.uint8)  # what no machine has
            raise MemoryError if self.says == "python" else torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(input)


def greedy(num_inputs: int, num_hidden: int, num_outputs: int, most: int, says: str = "cuda") -> nn.Module:
    return Greedy(most, says, nn.Linear(num_inputs, num_hidden), nn.Tanh(), nn.Linear(num_hidden, num_outputs))


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def vit(attention: str) -> nn.Module:
    config = ViTConfig(
        image_size=6,
        patch_size=3,
        num_channels=1,
        hidden_size=6,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=3,
    )
    return AutoModelForImageClassification.from_config(config, attn_implementation=attention)


def bert(attention: str, positions: int = 8) -> nn.Module:
    config = BertConfig(
        vocab_size=13,
        hidden_size=6,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=positions,
        num_labels=3,
    )
    return AutoModelForSequenceClassification.from_config(config, attn_implementation=attention)


def llama(attention: str) -> nn.Module:
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=6,
        max_position_embeddings=16,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


# Their inputs.


def numbers(seed: Seed, num: int, *, name: str, shape: Sequence[int]) -> Mapping[str, Tensor]:
    return {name: normals(seed.child(name), num, *shape, dtype=torch.float64)}


def tokens(seed: Seed, num: int, *, vocabulary: int, length: int) -> Mapping[str, Tensor]:
    """Sentences of different lengths, padded on the right."""
    generator = seed.child("tokens").generator()
    tokens = torch.randint(0, vocabulary, (num, length), generator=generator)
    lengths = torch.randint(2, length + 1, (num,), generator=generator)
    mask = (torch.arange(length) < lengths[:, None]).long()
    return {"input_ids": tokens * mask, "attention_mask": mask}
