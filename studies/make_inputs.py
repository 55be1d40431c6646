"""Draws what the example studies start from: an orange cat on a meadow, and a mask around it.

Run `python studies/make_inputs.py` after a change to the toy world; it replaces the PNG files beside it.
"""

from pathlib import Path

from PIL import Image

from workers.toyworld.scenes import Margin, Placement, Scene, box_mask, render

CAT = Scene(
    subject="cat",
    colour="orange",
    style="realistic",
    background="meadow",
    seed=4242,
    placement=Placement(x=0.5, y=0.56, scale=0.36),
)
# Any subject that takes the cat's place has room in it, and its shadow too.
MARGIN = Margin(left=3, top=3, right=3, bottom=3)


def draw_inputs() -> dict[str, Image.Image]:
    """Draw the pictures, by file name."""
    cat = render(CAT)
    return {"cat.png": cat.image, "cat-mask.png": box_mask(cat, MARGIN)}


def main() -> None:
    """Write the pictures into this file's folder."""
    folder = Path(__file__).parent
    for name, picture in draw_inputs().items():
        picture.save(folder / name)


if __name__ == "__main__":
    main()
