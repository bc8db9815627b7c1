"""Two steps of TRL's DPOTrainer with a tiny Qwen2-VL on an exported table; prints what the model was given, as JSON.

python tests/train_with_trl.py TABLE FOLDER      in an environment with `trl`
"""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from trl.trainer.dpo_config import DPOConfig  # pyright: ignore[reportMissingImports]
from trl.trainer.dpo_trainer import DPOTrainer  # pyright: ignore[reportMissingImports]

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPECIAL += ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TEMPLATE = """{%- for message in messages %}<|im_start|>{{ message['role'] }}
{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>
{%- else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


class Processor(Qwen2VLProcessor):
    """Of pictures alone: the films' part needs torchvision."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None
    ) -> None:
        self.image_processor, self.tokenizer, self.chat_template = (
            image_processor,
            tokenizer,
            chat_template,
        )
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)


def tiny() -> tuple[Qwen2VLForConditionalGeneration, Processor]:
    """A model and a processor made here: nothing is fetched."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        [], trainers.BpeTrainer(special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL[1:],
    )
    tokenizer.chat_template = TEMPLATE
    ids = {name: number for number, name in enumerate(SPECIAL)}  # the first of the vocabulary
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [1, 1, 2],
            },
        },
        vision_config={
            "depth": 1,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 4,
            "mlp_ratio": 1,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56})
    return Qwen2VLForConditionalGeneration(config), Processor(images, tokenizer, TEMPLATE)


def main(table: str, folder: str) -> None:
    """Train, and count what reaches the model."""
    torch.manual_seed(0)
    data = load_dataset("parquet", data_files=table, split="train", cache_dir=f"{folder}/cache")
    model, processor = tiny()
    seen = {"pixel_values": 0, "images": 0, "shown": 0}

    def look(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs.get("pixel_values") is not None and module.training:
            seen["pixel_values"] += kwargs["pixel_values"].numel()
            seen["images"] += len(kwargs["image_grid_thw"])

    settings = DPOConfig(
        output_dir=folder,
        max_steps=2,
        per_device_train_batch_size=-(-len(data) // 2),  # all rows in two steps
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        max_length=None,
        gradient_checkpointing=False,
    )
    reference = copy.deepcopy(model)
    trainer = DPOTrainer(
        model, reference, args=settings, train_dataset=data, processing_class=processor
    )
    model.register_forward_pre_hook(look, with_kwargs=True)
    trainer.train()
    # each picture is read with the better answer and with the worse one
    seen["shown"] = 2 * sum(len(images) for images in data["images"])
    print(json.dumps({**seen, "steps": trainer.state.global_step, "rows": len(data)}))


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).resolve()), sys.argv[2])
