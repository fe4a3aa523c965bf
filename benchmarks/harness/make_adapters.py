"""Writes PEFT folders with small random numbers on all seven projections of a base: adapters to measure with.

    python -m benchmarks.harness.make_adapters --base HOME/base/smollm2-135m-instruct --rank 16 --count 8 --out DIR

They answer differently from the base and from one another; what they say is of no interest.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def shapes(config: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Return the shape (out, in) of each projection of a Llama-like base, by module."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    sizes = {"q_proj": (q, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, q)}
    sizes |= {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    return {
        f"model.layers.{layer}.{'self_attn' if name[0] in 'qkvo' else 'mlp'}.{name}": size
        for layer in range(config["num_hidden_layers"])
        for name, size in sizes.items()
    }


def write(base: Path, out: Path, *, rank: int, seed: int, projections: tuple[str, ...] = PROJECTIONS) -> None:
    """Write an adapter with random float16 weights, similar to trained ones.

    Args:
        base: folder of the base.
        out: the PEFT folder to write.
        rank: rank of the adapter.
        seed: of the weights.
        projections: the projections that it adapts.
    """
    config = json.loads((base / "config.json").read_text())
    random = np.random.default_rng(seed)
    tensors = {}
    for module, (num_out, num_in) in shapes(config).items():
        if module.rpartition(".")[2] in projections:
            a = random.uniform(-1, 1, (rank, num_in)) / np.sqrt(num_in)
            b = random.normal(0, 0.02, (num_out, rank))
            tensors[f"base_model.model.{module}.lora_A.weight"] = a.astype(np.float16)
            tensors[f"base_model.model.{module}.lora_B.weight"] = b.astype(np.float16)
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank}
    settings |= {"base_model_name_or_path": str(base)}  # some servers look whether it is theirs
    (out / "adapter_config.json").write_text(json.dumps({**settings, "target_modules": list(projections)}))


def main() -> None:
    """Write adapters as the command line says, and push them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder of the base")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--push", action="store_true", help="push them to the server as a0, a1, …")
    options = parser.parse_args()
    for index in range(options.count):
        folder = options.out / f"a{index}"
        write(options.base, folder, rank=options.rank, seed=index)
        if options.push:
            from graftwork import Client

            with Client() as client:
                print(client.adapters.push(f"a{index}", folder).id)


if __name__ == "__main__":
    main()
