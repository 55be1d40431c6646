"""What a study may use up, and what it has used up."""

from dataclasses import dataclass

from search_spaces.study_file import BudgetSpec


@dataclass
class Spent:
    """What a study has used up over all its sessions: pictures generated, UNet calls, seconds."""

    images: int = 0
    unet_calls: int = 0
    gpu_seconds: float = 0.0
    seconds: float = 0.0


_UNITS = {
    "images": "images",
    "unet_calls": "UNet calls",
    "gpu_seconds": "seconds of the workers' time",
    "seconds": "seconds",
}


def spent_up(budget: BudgetSpec, spent: Spent) -> str | None:
    """A sentence that says which part of the budget is used up; None while there is some of each left."""
    for name, unit in _UNITS.items():
        limit = getattr(budget, name)
        if limit is not None and getattr(spent, name) >= limit:
            return f"the budget of {limit:,.12g} {unit} is used up"
    return None


def images_left(budget: BudgetSpec, spent: Spent, under_way: int) -> int | None:
    """How many more pictures may be begun beside those under way; None where they are not counted."""
    return None if budget.images is None else max(0, budget.images - spent.images - under_way)
