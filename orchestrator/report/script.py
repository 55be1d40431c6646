"""A plain diffusers script that draws an image of the catalog again, without any of our code."""

from collections.abc import Mapping
from pathlib import Path

from search_spaces.errors import InputError
from search_spaces.models import ModelDescription
from search_spaces.requests import Value
from workers.pipelines.loading import AUTO_CLASSES


def script(
    row: Mapping[str, object],
    settings: Mapping[str, Value],
    model: ModelDescription,
    source: str,
    inputs: Path,
) -> str:
    """The script for a row of `images`: its settings, its model from `source`, its input PNGs from a folder.

    Raises InputError for a row that would bring code of its own into it.
    """
    options = {
        name: value
        for name, value in settings.items()
        if value is not None and name in model.scheduler_options.get(str(settings["scheduler"]), {})
    }
    keywords = {
        name: value for name, value in settings.items() if name in model.keywords and value is not None
    }
    if not (str(settings["scheduler"]).isidentifier() and str(row["image_id"]).isalnum()):
        raise InputError("this row of the catalog holds what would be code in a script; who wrote it?")
    revision = "" if model.revision.startswith("sha256:") else f", revision={model.revision!r}"
    config = "".join(f", {name}={value!r}" for name, value in options.items())
    arguments = [f"prompt={row['prompt']!r}"]
    for argument, column in (("image", "input_image"), ("mask_image", "input_mask")):
        if row[column] is not None:
            arguments.append(f"{argument}=Image.open({str(inputs / f'{row[column]}.png')!r})")
    arguments += [f"{name}={value!r}" for name, value in keywords.items()]
    arguments.append(f"generator=torch.Generator().manual_seed({row['seed']!r})")
    call = "".join(f"    {argument},\n" for argument in arguments)
    needs_image = "from PIL import Image\n" if row["input_image"] is not None else ""
    auto_class = AUTO_CLASSES[model.task]
    return (
        f"# Draws image {row['image_id']} again with plain diffusers {model.diffusers}.\n"
        "import diffusers\n"
        "import torch\n"
        f"{needs_image}\n"
        f"pipeline = diffusers.{auto_class}.from_pretrained(\n"
        f"    {source!r}, dtype=torch.{model.dtype}{revision}\n"
        ")\n"
        f"pipeline.scheduler = diffusers.{settings['scheduler']}.from_config(pipeline.scheduler.config{config})\n"
        'pipeline.to("cuda" if torch.cuda.is_available() else "cpu")\n'
        "image = pipeline(\n"
        f"{call}"
        ").images[0]\n"
        f'image.save("{row["image_id"]}.png")\n'
    )
