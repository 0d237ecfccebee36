"""The recipes: for each role of a tensor, rules that are tried in turn; if none applies, the recipe's base format.

The choices are those of llama.cpp's file types, tensor by tensor (`llama_model_quantize`); the tests compare them with
recorded choices for models of many kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from pyllm.quant.recipes.conditions import (
    Condition,
    always,
    eight_experts,
    falcon,
    first_8th,
    first_16th,
    first_four,
    first_two,
    four_heads_share,
    imatrix,
    is_70b,
    middle,
    more_bits,
    some_experts,
    stacked,
)
from pyllm.quant.recipes.roles import Role
from pyllm.records import dataclass

Rule = tuple[Condition, str]
"""Where the condition holds, this format."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A named choice of formats."""

    name: str
    file_type: int
    """llama.cpp's number of the file type, `general.file_type`."""
    bits: float
    """Bits per weight of a model of Llama 3 8B's shape."""
    base: str
    """Format of matrices without a rule."""
    description: str
    rules: Mapping[Role, tuple[Rule, ...]]
    in_order: bool = False
    """Whether feed-forward matrices of experts are counted one by one; by default those of a layer count as one."""


def _plain(
    name: str, file_type: int, bits: float, base: str, description: str, rules: Mapping[str, list[Rule]] | None = None
) -> Recipe:
    """A recipe with rules by role."""
    by_role = {Role(role): tuple(some) for role, some in (rules or {}).items()}
    return Recipe(name, file_type, bits, base, description, MappingProxyType(by_role))


def _mixed(
    name: str,
    file_type: int,
    bits: float,
    base: str,
    description: str,
    *,
    output: str = "Q6_K",
    attn_v: list[Rule] | None = None,
    attn_k: list[Rule] | None = None,
    **rules: list[Rule],
) -> Recipe:
    """A recipe with `output` for the output matrix, and 8-bit attention where eight experts dominate the size."""
    more = {
        "output": [(falcon, "Q8_0"), (always, output)],
        "attn_v": [(eight_experts, "Q8_0"), *(attn_v or [])],
        "attn_k": [(eight_experts, "Q8_0"), *(attn_k or [])],
    }
    return _plain(name, file_type, bits, base, description, {**more, **rules})


def _tiny(
    name: str, file_type: int, bits: float, base: str, better: str, attn_output: list[Rule] | None = None
) -> Recipe:
    """A recipe below three bits; `better` is the format of the more important tensors."""
    rules = {
        "output": [(falcon, "Q8_0"), (always, "Q5_K")],
        "embedding": [(always, better)],
        "attn_v": [(four_heads_share, "Q4_K"), (some_experts, "Q4_K"), (always, better)],
        "attn_k": [(eight_experts, "Q4_K")],
        "ffn_down": [(first_8th, better)],
        "attn_output": [(eight_experts, "Q5_K"), *(attn_output or [])],
    }
    recipe = _plain(name, file_type, bits, base, "very small, from codebooks", rules)
    return replace(recipe, in_order=True)


# fmt: off
_ALL = (
    _plain("F32", 0, 32.0, "F32", "single precision"),
    _plain("F16", 1, 16.0, "F16", "half precision"),
    _plain("BF16", 32, 16.0, "BF16", "half precision with the range of single"),

    _mixed("Q8_0", 7, 8.5, "Q8_0", "as good as F16", output="Q8_0"),
    _mixed("Q6_K", 18, 6.6, "Q6_K", "hardly to be told from F16"),
    _mixed("Q5_K_M", 17, 5.7, "Q5_K", "very good",
           attn_v=[(more_bits, "Q6_K")],
           ffn_down=[(more_bits, "Q6_K")]),
    _mixed("Q5_K_S", 16, 5.6, "Q5_K", "very good, a little smaller"),
    _mixed("Q4_K_M", 15, 4.9, "Q4_K", "good: the usual choice",
           attn_v=[(more_bits, "Q6_K"), (is_70b, "Q5_K")],
           ffn_down=[(falcon & first_16th, "Q6_K"), (falcon & more_bits, "Q5_K"), (more_bits, "Q6_K")],
           attn_output=[(eight_experts & ~falcon, "Q5_K")]),
    _mixed("Q4_K_S", 14, 4.7, "Q4_K", "good, a little smaller",
           attn_v=[(first_four, "Q5_K"), (is_70b, "Q5_K")],
           ffn_down=[(first_8th & ~falcon, "Q5_K")],
           attn_output=[(eight_experts & ~falcon, "Q5_K")]),
    _mixed("Q3_K_L", 13, 4.3, "Q3_K", "loses some, more than Q3_K_M keeps",
           attn_v=[(always, "Q5_K")],
           ffn_down=[(falcon, "Q4_K"), (always, "Q5_K")],
           attn_output=[(falcon, "Q4_K"), (~eight_experts, "Q5_K")]),
    _mixed("Q3_K_M", 12, 4.0, "Q3_K", "loses some",
           attn_v=[(first_two, "Q5_K"), (is_70b, "Q5_K"), (always, "Q4_K")],
           ffn_down=[(first_16th, "Q5_K"), (falcon & ~more_bits, "Q3_K"), (always, "Q4_K")],
           attn_output=[(falcon, "Q3_K"), (eight_experts, "Q5_K"), (always, "Q4_K")]),
    _mixed("Q3_K_S", 11, 3.6, "Q3_K", "loses much",
           attn_v=[(is_70b, "Q5_K")],
           attn_output=[(eight_experts & ~falcon, "Q5_K")]),
    _mixed("Q2_K", 10, 3.2, "Q2_K", "loses very much",
           attn_v=[(is_70b, "Q5_K"), (four_heads_share, "Q4_K"), (always, "Q3_K")],
           ffn_down=[(always, "Q3_K")],
           attn_output=[(falcon, "Q2_K"), (eight_experts, "Q5_K"), (always, "Q3_K")]),
    _mixed("Q2_K_S", 21, 3.0, "Q2_K", "as Q2_K, smaller",
           attn_v=[(is_70b & four_heads_share, "Q5_K"), (four_heads_share, "Q4_K")],
           ffn_down=[(first_8th, "Q4_K")]),

    _mixed("IQ4_NL", 25, 4.7, "IQ4_NL", "good, sixteen uneven levels",
           attn_v=[(four_heads_share, "Q5_K")],
           ffn_down=[(first_8th & ~imatrix, "Q5_K")],
           attn_output=[(eight_experts & ~falcon, "Q5_K")]),
    _mixed("IQ4_XS", 30, 4.5, "IQ4_XS", "as IQ4_NL, smaller",
           attn_v=[(four_heads_share, "Q5_K")],
           ffn_down=[(first_8th & ~imatrix, "Q5_K")],
           attn_output=[(eight_experts & ~falcon, "Q5_K")]),
    _mixed("IQ3_M", 27, 3.8, "IQ3_S", "loses some, from codebooks",
           attn_v=[(is_70b, "Q5_K"), (always, "Q4_K")],
           ffn_down=[(first_8th, "Q4_K"), (eight_experts & more_bits, "Q4_K")],
           attn_output=[(falcon, "IQ3_S"), (eight_experts, "Q5_K"), (always, "Q4_K")]),
    _mixed("IQ3_S", 26, 3.7, "IQ3_S", "as IQ3_M, smaller",
           attn_v=[(is_70b & four_heads_share, "Q5_K"), (four_heads_share, "Q4_K")],
           attn_output=[(eight_experts & ~falcon, "Q5_K")]),
    _mixed("IQ3_XS", 22, 3.5, "IQ3_S", "as IQ3_S, smaller",
           attn_v=[(is_70b & four_heads_share, "Q5_K"), (four_heads_share, "Q4_K")],
           attn_k=[(always, "IQ3_XXS")],
           attn_q=[(always, "IQ3_XXS")],
           ffn_gate=[(middle, "IQ3_XXS")],
           ffn_up=[(middle, "IQ3_XXS")],
           attn_output=[(eight_experts & ~falcon, "Q5_K")]),
    _mixed("IQ3_XXS", 23, 3.4, "IQ3_XXS", "loses much, from codebooks",
           output="Q5_K",
           embedding=[(always, "IQ3_S")],
           attn_v=[(is_70b & four_heads_share, "Q5_K"), (four_heads_share, "Q4_K"), (~imatrix, "IQ3_S")],
           attn_k=[(always, "IQ2_S")],
           attn_q=[(always, "IQ2_S")],
           ffn_down=[(first_8th & ~imatrix, "Q4_K"), (~imatrix, "Q3_K")],
           attn_output=[(falcon, "IQ3_XXS"), (eight_experts, "Q5_K"), (always, "IQ3_S")]),
    _tiny("IQ2_M", 29, 2.9, "IQ2_S", "IQ3_S", attn_output=[(always, "IQ3_S")]),
    _tiny("IQ2_S", 28, 2.7, "IQ2_XS", "IQ3_S", attn_output=[(always, "IQ3_S")]),
    _tiny("IQ2_XS", 20, 2.6, "IQ2_XS", "Q2_K"),
    _tiny("IQ2_XXS", 19, 2.4, "IQ2_XXS", "Q2_K"),
    _tiny("IQ1_M", 31, 2.1, "IQ1_M", "Q2_K", attn_output=[(always, "IQ2_XXS")]),
    _tiny("IQ1_S", 24, 2.0, "IQ1_S", "Q2_K", attn_output=[(always, "IQ2_XXS")]),

    _plain("MXFP4_MOE", 38, 8.5, "MXFP4", "experts in MXFP4, the rest in Q8_0",
           {role.value: [(~stacked, "Q8_0")] for role in Role}),
    _mixed("Q5_1", 9, 6.0, "Q5_1", "older than the k-quants, for rows that they do not divide"),
    _mixed("Q5_0", 8, 5.6, "Q5_0", "as Q5_1, smaller",
           ffn_down=[(first_8th & imatrix, "Q5_1")]),
    _mixed("Q4_1", 3, 5.1, "Q4_1", "older than the k-quants, for rows that they do not divide"),
    _mixed("Q4_0", 2, 4.6, "Q4_0", "as Q4_1, smaller",
           ffn_down=[(first_8th & imatrix, "Q4_1")]),
    _mixed("TQ2_0", 37, 2.5, "TQ2_0", "for weights that were trained to three values", embedding=[(always, "Q4_K")]),
    _mixed("TQ1_0", 36, 2.2, "TQ1_0", "as TQ2_0, smaller", embedding=[(always, "Q4_K")]),
    _mixed("Q2_0", 41, 2.7, "Q2_0", "four levels", embedding=[(always, "Q4_K")]),
    _mixed("Q1_0", 40, 1.5, "Q1_0", "for weights that were trained to two values"),
)
# fmt: on

RECIPES: Mapping[str, Recipe] = MappingProxyType({recipe.name: recipe for recipe in _ALL})
"""All recipes by name."""

ALIASES: Mapping[str, str] = MappingProxyType(
    {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4": "MXFP4_MOE"}
)
"""Aliases and their recipes."""
