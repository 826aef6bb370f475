"""Load exported models with nothing of the trainer: text -> tokenizer -> logits, padding, and whether EOS ends a text.

    python load_export.py PROMPT DIRECTORY...

Prints JSON: for each directory what came out.
"""

import json
import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(prompt: str, directories: list[str]) -> None:
    with torch.no_grad():
        found = [examined(prompt, directory) for directory in directories]
    ours = [name for name in sys.modules if name.startswith("trainingjob")]
    sys.stdout.write(json.dumps({"ours": ours, "found": found}))


def examined(prompt: str, directory: str) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer(prompt, return_tensors="pt")
    logits = model(**inputs).logits
    generated = model.generate(**inputs, max_new_tokens=60, do_sample=False)[0]
    return {
        "ids": inputs.input_ids[0].tolist(),
        "logits": logits[0].tolist(),
        "generated": tokenizer.decode(generated, skip_special_tokens=True),
        "last": int(generated[-1]),
        "new": len(generated) - len(inputs.input_ids[0]),
        "padding": max(padded(model, tokenizer, prompt, side) for side in ("left", "right")),
        "batched": batched(model, tokenizer, prompt),
        "model_type": model.config.model_type,
        "dtype": str(model.dtype),
        "max_positions": model.config.max_position_embeddings,
        "ids_of_settings": [
            [settings.bos_token_id, settings.eos_token_id, settings.pad_token_id]
            for settings in (model.config, model.generation_config, tokenizer)
        ],
    }


def padded(model: Any, tokenizer: Any, prompt: str, side: str) -> float:
    """The largest difference that padding on a side makes to the logits of the real tokens."""
    tokenizer.padding_side = side
    alone = model(**tokenizer(prompt, return_tensors="pt")).logits[0]
    inputs = tokenizer([prompt, prompt * 2], return_tensors="pt", padding=True)
    positions = (inputs.attention_mask.cumsum(-1) - 1).clamp(min=0)  # as `generate` counts them
    logits = model(**inputs, position_ids=positions).logits[0]
    return float((logits[inputs.attention_mask[0].bool()] - alone).abs().max())


def batched(model: Any, tokenizer: Any, prompt: str) -> str:
    """What a prompt becomes beside a longer one, whose room it is padded to."""
    tokenizer.padding_side = "left"
    inputs = tokenizer([prompt, prompt * 2], return_tensors="pt", padding=True)
    text: str = tokenizer.decode(
        model.generate(**inputs, max_new_tokens=60, do_sample=False)[0], skip_special_tokens=True
    )
    return text


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
