"""What make_convert.py changes in tensors and config.json of some cases, after transformers has saved them."""

from __future__ import annotations

from typing import Any


def fp8_blocks(tensors: dict[str, Any], config: dict[str, Any]) -> None:
    """Projections become float8 with one scale per 16 x 32 block, the way DeepSeek and Qwen publish them."""
    import torch

    rows, columns = 16, 32
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        w = tensors[name].float()
        r, c = w.shape
        grid = w.reshape(r // rows, rows, c // columns, columns)
        scale = grid.abs().amax((1, 3)) / 448
        quantized = (grid / scale[:, None, :, None]).to(torch.float8_e4m3fn).reshape(r, c)
        tensors[name], tensors[f"{name}_scale_inv"] = quantized, scale
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [rows, columns],
    }


def fp8_channels(tensors: dict[str, Any], config: dict[str, Any]) -> None:
    """Projections become float8 with one scale per row, or (down) one for all, as compressed-tensors has them."""
    import torch

    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        w = tensors[name].float()
        whole = "down_proj" in name
        scale = (w.abs().amax() if whole else w.abs().amax(1, keepdim=True)) / 448
        tensors[name] = (w / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale"] = scale.to(torch.bfloat16).reshape((1,) if whole else (-1, 1))
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}},
    }


def mxfp4(tensors: dict[str, Any], config: dict[str, Any]) -> None:
    """Experts become blocks of 32 4-bit floats with a power of two each, as gpt-oss is published."""
    import torch

    random = torch.Generator().manual_seed(5)
    for name in [n for n in tensors if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, columns, rows = tensors.pop(name).shape
        shape = (experts, rows, columns // 32)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), generator=random, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(122, 126, shape, generator=random, dtype=torch.uint8)
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}


def stacked(tensors: dict[str, Any], config: dict[str, Any]) -> None:
    """Experts become one tensor per layer and projection, gate and up together, as transformers 5 holds them."""
    import torch

    for name in [n for n in tensors if n.endswith("experts.0.gate_proj.weight")]:
        stem = name.removesuffix("0.gate_proj.weight")
        parts = {
            p: torch.stack([tensors.pop(f"{stem}{e}.{p}_proj.weight") for e in range(config["num_local_experts"])])
            for p in ("gate", "up", "down")
        }
        tensors[f"{stem}gate_up_proj"] = torch.cat((parts["gate"], parts["up"]), dim=1)
        tensors[f"{stem}down_proj"] = parts["down"]


def rotary_pct(tensors: dict[str, Any], config: dict[str, Any]) -> None:
    """A setting of GPT-NeoX's published checkpoints that llama.cpp's converter needs, beside transformers 5's."""
    config["rotary_pct"] = config["rope_parameters"]["partial_rotary_factor"]


def rotary_names(tensors: dict[str, Any], config: dict[str, Any]) -> None:
    """Positions under the names that GPT-NeoX's published settings have, and no others."""
    rope = config.pop("rope_parameters")
    config |= {"rotary_pct": rope["partial_rotary_factor"], "rotary_emb_base": rope["rope_theta"]}


def internlm2(tensors: dict[str, Any], config: dict[str, Any]) -> None:
    """A Llama becomes an InternLM 2, by modeling_internlm2.py of the published checkpoints: other names, and for each
    head of keys and values the rows of its queries, its key and its value, one below the other."""
    import torch

    names = {
        "model.embed_tokens": "model.tok_embeddings",
        "lm_head": "output",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
    }
    n_heads, dim = config["num_key_value_heads"], config["head_dim"]
    for name in [n for n in tensors if "self_attn.q_proj" in n]:
        parts = (tensors.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv")
        heads = torch.cat([part.unflatten(0, (n_heads, -1, dim)) for part in parts], dim=1)
        tensors[name.replace("self_attn.q_proj", "attention.wqkv")] = heads.flatten(0, 2)
    for old, new in names.items():
        for name in [n for n in tensors if old in n]:
            tensors[name.replace(old, new)] = tensors.pop(name)
    config |= {
        "architectures": ["InternLM2ForCausalLM"],
        "model_type": "internlm2",
        "bias": config.pop("attention_bias"),
        "rope_theta": config.pop("rope_parameters")["rope_theta"],
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    }
    del config["head_dim"], config["mlp_bias"]


def lists_by_layer(tensors: dict[str, Any], config: dict[str, Any]) -> None:
    """Settings of Hunyuan's published checkpoints that transformers passes over."""
    n = config["num_hidden_layers"]
    config |= {
        "moe_topk": [config["moe_topk"]] * n,
        "moe_intermediate_size": [config["intermediate_size"]] * n,
        "num_shared_expert": [1] * n,
        "use_mixed_mlp_moe": True,
        "use_qk_norm": True,
        "use_cla": False,
    }


def scoring(tensors: dict[str, Any], config: dict[str, Any]) -> None:
    """Settings of MiniMax M2's published checkpoints, which have no rope_parameters."""
    config |= {"scoring_func": "sigmoid", "use_qk_norm": True, "qk_norm_type": "per_layer"}
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]


def older_name(tensors: dict[str, Any], config: dict[str, Any]) -> None:
    """The class as the first checkpoints name it."""
    config["architectures"] = ["Ernie4_5_ForCausalLM"]


def whole_rotation(tensors: dict[str, Any], config: dict[str, Any]) -> None:
    """A setting of published checkpoints that transformers 5 leaves out and llama.cpp's converter needs."""
    config["rotary_pct"] = 1.0


def older_kinds(tensors: dict[str, Any], config: dict[str, Any]) -> None:
    """Kinds of layers in the words of published checkpoints of Granite 4."""
    words = {"linear_attention": "mamba", "full_attention": "attention"}
    config["layer_types"] = [words[kind] for kind in config["layer_types"]]


def pattern(tensors: dict[str, Any], config: dict[str, Any]) -> None:
    """Settings of published checkpoints of Nemotron-H: a letter for each layer, experts where there are some."""
    letters = {"linear_attention": "M", "full_attention": "*", "mlp": "-", "moe": "E"}
    config["hybrid_override_pattern"] = "".join(letters[kind] for kind in config.pop("layers_block_type"))
    config["num_hidden_layers"] = len(config["hybrid_override_pattern"])
    if "E" not in config["hybrid_override_pattern"]:
        for key in [key for key in config if "expert" in key or key.startswith("moe_")]:
            del config[key]


def next_layer(tensors: dict[str, Any], config: dict[str, Any]) -> None:
    """A layer that predicts a further token, after the others; transformers passes over it."""
    import torch

    n = config["num_hidden_layers"]
    last = f"model.layers.{n - 1}."
    for name in [name for name in tensors if name.startswith(last)]:
        tensors[name.replace(last, f"model.layers.{n}.")] = tensors[name] * 0.5
    random = torch.Generator().manual_seed(7)
    width = config["hidden_size"]
    for name, shape in (("eh_proj", (width, 2 * width)), ("enorm", (width,)), ("hnorm", (width,))):
        tensors[f"model.layers.{n}.{name}.weight"] = torch.randn(shape, generator=random).to(torch.bfloat16)
    tensors[f"model.layers.{n}.shared_head.norm.weight"] = tensors["model.norm.weight"].clone()
    config["num_nextn_predict_layers"] = 1


def next_layer_beside(tensors: dict[str, Any], config: dict[str, Any]) -> None:
    """The same under names of its own, "mtp."; transformers passes over it."""
    import torch

    last = f"model.layers.{config['num_hidden_layers'] - 1}."
    for name in [name for name in tensors if name.startswith(last)]:
        tensors[name.replace(last, "mtp.layers.0.")] = tensors[name] * 0.5
    random = torch.Generator().manual_seed(7)
    width = config["hidden_size"]
    shapes = {"fc": (width, 2 * width), "pre_fc_norm_embedding": (width,), "pre_fc_norm_hidden": (width,)}
    for name, shape in shapes.items():
        tensors[f"mtp.{name}.weight"] = torch.randn(shape, generator=random).to(torch.bfloat16)
    tensors["mtp.norm.weight"] = tensors["model.norm.weight"].clone()
    config["mtp_num_hidden_layers"] = 1
