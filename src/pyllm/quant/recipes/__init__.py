"""Recipes: the format of each tensor of a model. `RECIPES` are the file types of llama.cpp."""

from pyllm.quant.recipes.choose import Choice, RecipeOptions, Tensor, asked_for, choose, recipe_named
from pyllm.quant.recipes.table import ALIASES, RECIPES, Recipe

__all__ = ["ALIASES", "RECIPES", "Choice", "Recipe", "RecipeOptions", "Tensor", "asked_for", "choose", "recipe_named"]
