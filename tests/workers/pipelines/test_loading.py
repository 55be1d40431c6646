"""Models are found by name, described without their weights as they really are, and loaded."""

import errno
import inspect
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import huggingface_hub
import huggingface_hub.errors
import pytest
import torch
from diffusers.pipelines import auto_pipeline
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPProcessor

from orchestrator.wiring import load_scorer
from search_spaces.models import DEFAULT_CLIP, REGISTRY, ModelDescription, Task, is_of_kind
from search_spaces.requests import Value
from search_spaces.space import effective_steps
from tests.workers.helpers import SCHEDULER_NOISE, complete, refusal
from tests.workers.tiny_models import SIDE, TOYWORLD
from workers.pipelines.loading import (
    _MAPPINGS,
    AUTO_CLASSES,
    _defaults,
    _kinds,
    _refuse_too_large,
    check_compiler,
    describe,
    describe_clip,
    folder_hash,
    load_pipeline,
    local_folder,
    locate,
    unet_calls,
)

pytestmark = SCHEDULER_NOISE

HERE = Path.cwd()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "fedcba9876543210fedcba9876543210fedcba98"


def described(name: str | Path, task: Task | None = None, near: Path = HERE) -> ModelDescription:
    return describe(str(name), task, "float32", near)


class Hub:
    """A hub cache as huggingface_hub lays it out, for a machine that cannot reach the hub."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache

    def add(self, name: str, folder: Path, commit: str = COMMIT, ref: str | None = "main") -> Path:
        """Put a folder's files into the cache as one commit of a model."""
        model = self.cache / f"models--{name.replace('/', '--')}"
        snapshot = model / "snapshots" / commit
        shutil.copytree(folder, snapshot)
        (model / "refs").mkdir(exist_ok=True)
        if ref is not None:
            (model / "refs" / ref).write_text(commit)
        return snapshot


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    cache = tmp_path / "snapshots" / "hub"  # a name that the layout uses too
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return Hub(cache)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The bundled pipeline in a folder of the user's."""
    shutil.copytree(TOYWORLD, tmp_path / "my-model")
    return tmp_path / "my-model"


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


class TestDescribe:
    def test_the_bundled_model_in_every_field(self, toyworld: ModelDescription) -> None:
        assert toyworld.model_dump() == {
            "name": "toyworld",
            "location": "package:workers.toyworld/model/pipeline",
            "revision": folder_hash(TOYWORLD),
            "task": "inpainting",
            "pipeline": "StableDiffusionInpaintPipeline",
            "dtype": "float32",
            "keywords": {
                "height": 64,
                "width": 64,
                "padding_mask_crop": None,
                "strength": 1.0,
                "num_inference_steps": REGISTRY["toyworld"].defaults["num_inference_steps"],
                "guidance_scale": REGISTRY["toyworld"].defaults["guidance_scale"],
                "negative_prompt": None,
                "eta": 0.0,
            },
            "kinds": {
                "height": ("int", "null"),
                "width": ("int", "null"),
                "padding_mask_crop": ("int", "null"),
                "strength": ("float",),
                "num_inference_steps": ("int",),
                "guidance_scale": ("float",),
                "negative_prompt": ("str", "null"),
                "eta": ("float",),
            },
            "scheduler_options": toyworld.scheduler_options,
            "scheduler_kinds": toyworld.scheduler_kinds,
            "step_limits": {"LCMScheduler": (1, 50), "TCDScheduler": (1, 50), "PNDMScheduler": (4, None)},
            "defaults_source": REGISTRY["toyworld"].source,
            "scheduler": "DDIMScheduler",
            "schedulers": toyworld.schedulers,
            "size_multiple": 8,
            "guidance_embedded": False,
            "diffusers": diffusers.__version__,
            "trust": (),
        }
        assert toyworld.identity.startswith("sha256:")
        assert toyworld.family.strength_cuts_steps

    def test_schedulers_that_fit_are_offered_and_others_are_not(self, toyworld: ModelDescription) -> None:
        offered = set(toyworld.schedulers)
        assert list(toyworld.schedulers) == sorted(offered)
        assert offered >= {
            "DDIMScheduler",
            "DPMSolverMultistepScheduler",
            "EulerAncestralDiscreteScheduler",
            "EulerDiscreteScheduler",
            "HeunDiscreteScheduler",
            "LCMScheduler",
            "PNDMScheduler",
            "TCDScheduler",
            "UniPCMultistepScheduler",
        }
        # Of other families, or deaf to the generator.
        assert not offered & {
            "FlowMatchEulerDiscreteScheduler",
            "DPMSolverSDEScheduler",
            "VQDiffusionScheduler",
        }
        assert all(hasattr(diffusers, name) for name in offered)

    def test_agrees_with_the_pipeline_that_is_really_loaded(
        self, toyworld: ModelDescription, toyworld_pipeline: Any, plain_toyworld: Any
    ) -> None:
        assert toyworld.pipeline == type(plain_toyworld).__name__ == type(toyworld_pipeline).__name__
        assert toyworld.scheduler == type(plain_toyworld.scheduler).__name__
        side = plain_toyworld.unet.config.sample_size * plain_toyworld.vae_scale_factor
        assert (toyworld.keywords["height"], toyworld.keywords["width"]) == (side, side)
        parameters = inspect.signature(type(plain_toyworld).__call__).parameters
        for name, value in toyworld.keywords.items():
            known = (*REGISTRY["toyworld"].defaults, "height", "width")
            assert name in parameters
            assert name in known or value == parameters[name].default

    @pytest.mark.parametrize(
        ("task", "pipeline"),
        [
            (None, "StableDiffusionPipeline"),
            ("text-to-image", "StableDiffusionPipeline"),
            ("image-to-image", "StableDiffusionImg2ImgPipeline"),
            ("inpainting", "StableDiffusionInpaintPipeline"),
        ],
    )
    def test_stable_diffusion_does_every_task(self, tiny_sd: Path, task: Task | None, pipeline: str) -> None:
        model = described(tiny_sd, task)
        auto = getattr(diffusers, AUTO_CLASSES[model.task])
        assert model.task == (task or "text-to-image")
        assert model.pipeline == pipeline == type(auto.from_pretrained(tiny_sd)).__name__
        assert ("strength" in model.keywords) == (model.task != "text-to-image")
        assert ("padding_mask_crop" in model.keywords) == (model.task == "inpainting")
        sized = model.task != "image-to-image"  # which draws at its input's size
        assert model.keywords.get("width") == model.keywords.get("height") == (SIDE if sized else None)
        assert model.defaults_source == f"diffusers {pipeline}.__call__"
        assert model.keywords["guidance_scale"] == 7.5
        assert not model.guidance_embedded

    @pytest.mark.parametrize("task", ["text-to-image", "image-to-image", "inpainting"])
    def test_sdxl_has_defaults_of_its_own(self, tiny_sdxl: Path, task: Task) -> None:
        model = described(tiny_sdxl, task)
        auto = getattr(diffusers, AUTO_CLASSES[task])
        assert model.pipeline == type(auto.from_pretrained(tiny_sdxl)).__name__
        assert model.pipeline.startswith("StableDiffusionXL")
        assert model.scheduler == "EulerDiscreteScheduler"
        assert {"prompt_2", "negative_prompt_2", "guidance_rescale", "clip_skip"} <= model.keywords.keys()
        if task == "text-to-image":
            assert (model.keywords["guidance_scale"], model.keywords["width"]) == (5.0, SIDE)

    def test_guidance_embedded_in_the_unet_is_seen(self, tiny_lcm: Path) -> None:
        model = described(tiny_lcm)
        assert model.guidance_embedded
        assert (model.task, model.pipeline) == ("text-to-image", "LatentConsistencyModelPipeline")
        assert model.scheduler == "LCMScheduler"
        assert model.keywords["num_inference_steps"] == 4

    def test_what_a_study_cannot_sweep_is_no_setting(self, tiny_sdxl: Path, tiny_sd: Path) -> None:
        for folder in (tiny_sd, tiny_sdxl):
            for task in AUTO_CLASSES:
                keywords = described(folder, task).keywords
                assert not keywords.keys() & {"prompt", "image", "mask_image", "generator", "latents", "self"}
                assert not any("embeds" in name or "callback" in name for name in keywords)
                assert all(
                    value is None or isinstance(value, str | int | float) for value in keywords.values()
                )

    def test_scheduler_options_are_those_that_from_config_sets(self, toyworld: ModelDescription) -> None:
        config = load_pipeline(toyworld, "cpu").scheduler.config
        assert toyworld.scheduler_options.keys() == set(toyworld.schedulers)
        for name, options in toyworld.scheduler_options.items():
            made = getattr(diffusers, name).from_config(config).config
            assert options == {option: made[option] for option in options}
            assert all(
                is_of_kind(value, toyworld.scheduler_kinds[option]) for option, value in options.items()
            )
        assert toyworld.scheduler_options["DDIMScheduler"]["timestep_spacing"] == "leading"
        assert toyworld.scheduler_options["DPMSolverMultistepScheduler"]["algorithm_type"] == "dpmsolver++"
        assert toyworld.scheduler_kinds["use_karras_sigmas"] == ("bool", "null")
        assert not toyworld.scheduler_kinds.keys() & {"beta_start", "prediction_type", "num_train_timesteps"}

    @pytest.mark.parametrize("task", list(AUTO_CLASSES))
    def test_every_pipeline_of_diffusers_has_settings_of_known_types(self, task: Task) -> None:
        mapping = getattr(auto_pipeline, _MAPPINGS[task])
        for pipeline in set(mapping.values()):
            kinds = _kinds(pipeline)
            assert any("steps" in name for name in kinds) or "num_frames" in kinds, pipeline
            assert not kinds.keys() & {"original_size", "text_encoder_out_layers", "latents", "generator"}
            for name, default in _defaults(pipeline, {}, {}).items():
                assert is_of_kind(default, kinds[name]), (pipeline, name)

    def test_steps_outside_the_limits_raise_and_those_within_run(self, toyworld: ModelDescription) -> None:
        pipeline = load_pipeline(toyworld, "cpu")
        assert toyworld.step_limits
        image = Image.new("RGB", (64, 64))
        for scheduler, (fewest, most) in toyworld.step_limits.items():
            made = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
            for steps in {fewest - 1, fewest, *([most, most + 1] if most else [])} - {0}:
                pipeline.scheduler = made.from_config(made.config)
                strength = min(1.0, 1.5 / steps) if fewest <= steps else 1.0
                call = partial(
                    pipeline,
                    "a cat",
                    image,
                    image,
                    num_inference_steps=steps,
                    strength=strength,
                    guidance_scale=1,
                )
                if fewest <= steps <= (most or steps):
                    call()
                else:
                    with pytest.raises(ValueError, match=r"num_inference_steps|broadcast|less than or equal"):
                        call()

    def test_clip_skip_is_offered_only_where_it_works(self, tiny_sd: Path) -> None:
        """Whichever diffusers and transformers are installed."""
        model = described(tiny_sd)
        pipeline = load_pipeline(model, "cpu")
        try:
            pipeline("a cat", num_inference_steps=1, clip_skip=1)
            works = True
        except AttributeError:
            works = False
        assert ("clip_skip" in model.keywords) == works

    @pytest.mark.parametrize("task", ["text-to-image", "image-to-image"])
    def test_an_inpainting_unet_does_nothing_else(self, task: Task) -> None:
        """`AutoPipelineFor…` would load it, and every call would fail."""
        with refusal("model: toyworld", task, "it can do inpainting"):
            described("toyworld", task)

    def test_a_pipeline_that_cannot_do_the_task_says_what_it_can(self, copied: Path) -> None:
        rewrite(copied / "model_index.json", _class_name="PixArtAlphaPipeline")
        with refusal("model: a PixArtAlphaPipeline cannot do the task inpainting", "text-to-image"):
            described(copied, "inpainting")

    @pytest.mark.parametrize("name", ["NoSuchPipeline", None, 7])
    def test_a_pipeline_that_diffusers_does_not_know_is_refused(self, copied: Path, name: object) -> None:
        rewrite(copied / "model_index.json", _class_name=name)
        with refusal("model", "no pipeline that diffusers knows"):
            described(copied)

    @pytest.mark.parametrize(
        "scheduler",
        [
            None,
            [],
            ["diffusers"],
            [None, None],
            ["mine", "MyScheduler"],
            ["diffusers", "NoSuchScheduler"],
            "DDIM",
            7,
        ],
    )
    def test_a_model_without_a_diffusers_scheduler_is_refused(self, copied: Path, scheduler: object) -> None:
        rewrite(copied / "model_index.json", scheduler=scheduler)
        with refusal("model", str(copied), "no diffusers scheduler"):
            described(copied)

    def test_a_model_without_its_schedulers_settings_is_refused(self, copied: Path) -> None:
        (copied / "scheduler" / "scheduler_config.json").unlink()
        with refusal("model", str(copied), "no scheduler/scheduler_config.json"):
            described(copied)

    def test_no_weights_are_needed(self, copied: Path) -> None:
        for path in copied.rglob("*.safetensors"):
            path.write_bytes(b"no weights")
        assert described(copied).pipeline == "StableDiffusionInpaintPipeline"


@pytest.mark.parametrize("vae", ["AsymmetricAutoencoderKL", "ConsistencyDecoderVAE"])
def test_a_vae_whose_decoder_takes_more_than_latents_is_refused(copied: Path, vae: str) -> None:
    rewrite(copied / "vae" / "config.json", _class_name=vae)
    with refusal("model: ", vae, "cannot decode in batches"):
        described(copied)


class TestFolders:
    def test_a_copy_has_the_packages_revision(self, copied: Path, toyworld: ModelDescription) -> None:
        model = described(copied)
        assert model.revision == toyworld.revision
        assert model.identity == toyworld.identity
        assert (model.location, model.name) == (str(copied), str(copied))
        # The registry's figures are the registered model's; a folder is known by its pipeline only.
        assert model.keywords["guidance_scale"] == 7.5

    def test_one_changed_byte_is_another_revision(self, copied: Path, toyworld: ModelDescription) -> None:
        weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
        assert described(copied).revision != toyworld.revision

    @pytest.mark.parametrize("name", ["unet/more.json", "custom.py", "vae/weights.bin"])
    def test_one_more_file_is_another_revision(self, copied: Path, name: str) -> None:
        before = folder_hash(copied)
        (copied / name).write_text("{}")
        assert folder_hash(copied) != before

    def test_a_renamed_file_is_another_revision(self, copied: Path) -> None:
        before = folder_hash(copied)
        (copied / "unet" / "config.json").rename(copied / "unet" / "config.json5")
        assert folder_hash(copied) != before

    @pytest.mark.parametrize(
        "name", ["README.md", "sample.png", ".gitattributes", ".cache/huggingface/x.json"]
    )
    def test_what_draws_nothing_does_not_count(
        self, copied: Path, toyworld: ModelDescription, name: str
    ) -> None:
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / name).write_text("hello")
        assert described(copied).revision == toyworld.revision

    def test_relative_names_are_relative_to_the_study_file(self, copied: Path) -> None:
        for name in ("my-model", "./my-model", "../" + copied.parent.name + "/my-model"):
            assert described(name, near=copied.parent).location == str(copied)
        with refusal("my-model"):
            described("my-model", near=copied)

    def test_the_home_folder_is_known(self, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(copied.parent))
        assert described("~/my-model").location == str(copied)

    def test_a_folder_that_is_no_model_is_refused(self, tmp_path: Path) -> None:
        with refusal("model", str(tmp_path), "no model_index.json"):
            described(tmp_path)

    @pytest.mark.parametrize("content", ["", "{", "[1]", "\x00", "{'_class_name': 1}"])
    @pytest.mark.parametrize("name", ["model_index.json", "unet/config.json"])
    def test_broken_json_is_refused_with_its_path(self, copied: Path, name: str, content: str) -> None:
        (copied / name).write_text(content)
        with refusal("model: ", str(copied / name)):
            described(copied)

    def test_bytes_that_are_no_text_are_refused(self, copied: Path) -> None:
        (copied / "model_index.json").write_bytes(b"\xff\xfe\x00")
        with refusal("model: ", str(copied / "model_index.json"), "it is no UTF-8"):
            described(copied)


class TestNames:
    @pytest.mark.parametrize(
        ("name", "near_miss"),
        [("toywrld", "toyworld"), ("sdxl-turb", "sdxl-turbo"), ("sd1.5", "sd-1.5")],
    )
    def test_an_unknown_name_is_refused_with_the_nearest(self, name: str, near_miss: str) -> None:
        with refusal(f"model: unknown model {name!r}", f"did you mean {near_miss!r}?"):
            described(name)

    @pytest.mark.parametrize(
        "name",
        [
            "zzz",
            "a/b/c",
            "/no/such/folder",
            "./nothing",
            "~nobody-here/model",
            "owner/",
            "/name",
            "x" * 5000,
            "a\0b",
        ],
    )
    def test_a_name_that_leads_nowhere_is_refused(self, name: str) -> None:
        with refusal("model: unknown model"):
            described(name)

    def test_the_key_is_named(self) -> None:
        with refusal("clip_model: unknown model 'zzz'"):
            locate("zzz", HERE, "clip_model")

    def test_the_registry_goes_before_folders_and_folders_before_the_hub(self, tmp_path: Path) -> None:
        for name in ("toyworld", "owner/name"):
            (tmp_path / name).mkdir(parents=True)
        assert locate("toyworld", tmp_path, "model") == (REGISTRY["toyworld"].location, None)
        assert locate("./toyworld", tmp_path, "model") == (str(tmp_path / "toyworld"), None)
        assert locate("owner/name", tmp_path, "model") == (str(tmp_path / "owner" / "name"), None)
        assert locate("owner/other", tmp_path, "model") == ("owner/other", None)
        assert locate("owner/other@v1.0", tmp_path, "model") == ("owner/other", "v1.0")

    def test_locations_lead_to_folders_of_this_machine(self, tmp_path: Path) -> None:
        assert local_folder("package:workers.toyworld/model/pipeline") == TOYWORLD
        assert local_folder(str(tmp_path)) == tmp_path
        assert local_folder("owner/name") is None


class TestRegistry:
    @pytest.mark.parametrize("name", sorted(REGISTRY))
    def test_entries_have_a_source_and_plausible_values(self, name: str) -> None:
        entry = REGISTRY[name]
        assert len(entry.source) > 8
        steps, guidance = entry.defaults["num_inference_steps"], entry.defaults["guidance_scale"]
        assert isinstance(steps, int)
        assert isinstance(guidance, float)
        assert 1 <= steps <= 100
        assert 0 <= guidance <= 15
        if "distilled" in entry.source:
            assert steps <= 4
            assert guidance == 0
        strength = entry.defaults.get("strength", 1.0)
        assert isinstance(strength, float)
        assert 0 < strength <= 1
        location, revision = locate(name, HERE, "model")
        assert (location, revision) == (entry.location, None)
        assert location.startswith("package:") or location.count("/") == 1

    def test_locations_are_all_different(self) -> None:
        assert len({entry.location for entry in REGISTRY.values()}) == len(REGISTRY)

    def test_families_have_defaults_of_their_own(self, hub: Hub, tiny_sd: Path, tiny_sdxl: Path) -> None:
        """By registry name and by hub id alike."""
        for name, folder in (
            ("sd-1.5", tiny_sd),
            ("sd-turbo", tiny_sd),
            ("sdxl", tiny_sdxl),
            ("sdxl-turbo", tiny_sdxl),
        ):
            hub.add(REGISTRY[name].location, folder)
        found = {}
        for name in ("sd-1.5", "sdxl", "sd-turbo", "sdxl-turbo"):
            model = described(name)
            assert model.keywords == described(REGISTRY[name].location).keywords
            assert model.keywords == described(f"{REGISTRY[name].location}@main").keywords
            assert model.defaults_source == REGISTRY[name].source
            found[name] = (model.keywords["num_inference_steps"], model.keywords["guidance_scale"])
        assert found == {
            "sd-1.5": (50, 7.5),
            "sdxl": (50, 5.0),
            "sd-turbo": (1, 0.0),
            "sdxl-turbo": (1, 0.0),
        }

    def test_a_default_that_the_pipeline_does_not_take_is_left_out(self, hub: Hub, tiny_sdxl: Path) -> None:
        hub.add(REGISTRY["sdxl-inpainting"].location, tiny_sdxl)
        assert described("sdxl-inpainting", "inpainting").keywords["strength"] == 0.99
        assert "strength" not in described("sdxl-inpainting", "text-to-image").keywords


class TestHub:
    def test_a_name_is_resolved_to_its_commit(self, hub: Hub, toyworld: ModelDescription) -> None:
        hub.add("owner/toy", TOYWORLD)
        model = described("owner/toy")
        assert (model.location, model.revision) == ("owner/toy", COMMIT)
        assert model.identity == f"owner/toy@{COMMIT}"
        assert model.pipeline == toyworld.pipeline
        assert (model.keywords["width"], model.schedulers) == (64, toyworld.schedulers)

    def test_a_revision_may_be_asked_for(self, hub: Hub, tiny_sd: Path) -> None:
        hub.add("owner/toy", TOYWORLD)
        hub.add("owner/toy", tiny_sd, OLDER, ref="v1")
        for asked, commit, pipeline in (
            ("owner/toy@v1", OLDER, "StableDiffusionPipeline"),
            (f"owner/toy@{OLDER}", OLDER, "StableDiffusionPipeline"),
            (f"owner/toy@{COMMIT}", COMMIT, "StableDiffusionInpaintPipeline"),
            ("owner/toy@main", COMMIT, "StableDiffusionInpaintPipeline"),
        ):
            model = described(asked)
            assert (model.location, model.revision, model.pipeline) == ("owner/toy", commit, pipeline)

    def test_the_commit_is_what_is_loaded(self, hub: Hub, toyworld_pipeline: Any, tiny_sd: Path) -> None:
        """Also when the name has moved on since the study was pinned."""
        hub.add("owner/toy", TOYWORLD, OLDER)
        model = described("owner/toy")
        moved_on = hub.add("owner/toy", tiny_sd, COMMIT)
        rewrite(moved_on / "scheduler" / "scheduler_config.json", skip_prk_steps=True)
        pipeline = load_pipeline(model, "cpu")
        assert type(pipeline) is type(toyworld_pipeline)
        assert pipeline.unet.config.in_channels == 9
        settings = complete(model, num_inference_steps=4, scheduler="PNDMScheduler")
        assert unet_calls(model, settings) == 13

    @pytest.mark.parametrize("name", ["owner/nothing", "owner/nothing@v1"])
    def test_what_is_not_cached_is_refused_without_a_network(self, hub: Hub, name: str) -> None:
        with refusal("model: unknown model 'owner/nothing'", "not on this machine", "go online"):
            described(name)

    def test_a_revision_that_is_not_cached_is_refused(self, hub: Hub) -> None:
        hub.add("owner/toy", TOYWORLD)
        with refusal("model", "owner/toy", "not on this machine"):
            described("owner/toy@v9")

    def test_a_model_without_unet_needs_no_file_of_it(self, hub: Hub, tmp_path: Path) -> None:
        """Offline, a file that never was looks like one that is not cached."""
        index = {
            "_class_name": "FluxPipeline",
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        for name, content in (
            ("model_index.json", index),
            ("vae/config.json", {}),
            ("scheduler/scheduler_config.json", {"use_dynamic_shifting": True}),
        ):
            (tmp_path / "flux" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "flux" / name).write_text(json.dumps(content))
        hub.add(REGISTRY["flux-dev"].location, tmp_path / "flux")
        model = described("flux-dev")
        assert (model.pipeline, model.keywords["guidance_scale"]) == ("FluxPipeline", 3.5)
        assert model.schedulers == ("FlowMatchEulerDiscreteScheduler",)
        assert unet_calls(model, complete(model)) is None  # its schedule depends on the picture's size

    def test_a_hub_model_of_another_kind_is_refused(self, hub: Hub, clip_folder: Path) -> None:
        hub.add("owner/clip", clip_folder)
        with refusal("model", "owner/clip"):
            described("owner/clip")

    @pytest.mark.parametrize(
        ("error", "parts"),
        [
            (
                huggingface_hub.errors.RepositoryNotFoundError,
                ["unknown model 'stabilityai/sd-turb'", "known are", "sd-turbo"],
            ),
            (huggingface_hub.errors.GatedRepoError, ["unknown model", "gated"]),
            (huggingface_hub.errors.RevisionNotFoundError, ["no revision 'v1'"]),
            (huggingface_hub.errors.RemoteEntryNotFoundError, ["no model_index.json"]),
            (huggingface_hub.errors.HfHubHTTPError, ["cannot be read from the hub"]),
            (ConnectionError, ["cannot be read from the hub"]),
        ],
    )
    def test_what_the_hub_answers_is_said_in_a_sentence(
        self, error: Callable[..., Exception], parts: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def answer(*_: object, **__: object) -> str:
            if error is ConnectionError:
                raise error("no route")
            raise error("500 Server Error\n\nmore", response=SimpleNamespace(headers={}, request=None))

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", answer)
        with refusal("model: ", *parts):
            described("stabilityai/sd-turb@v1")

    @pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
    def test_a_cache_that_cannot_be_written_is_said_with_what_moves_it(
        self, number: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def answer(*_: object, **__: object) -> str:
            raise OSError("no room") from OSError(number, os.strerror(number), "/home/nobody/.cache")

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", answer)
        with refusal("model: ", "cannot be read from the hub: no room", "which HF_HOME moves"):
            described("stabilityai/sd-turb@v1")

    def test_a_hub_id_with_odd_letters_is_refused(self) -> None:
        with refusal("model: unknown model 'owner/na me'"):
            described("owner/na me")


class TestClip:
    def test_the_bundled_model_is_judged_by_its_own(self, clip_folder: Path) -> None:
        scorer = describe_clip(None, "toyworld", HERE)
        assert (scorer.name, scorer.model) == ("clip_score", "toyworld")
        assert local_folder(scorer.location) == clip_folder
        assert scorer.revision == folder_hash(clip_folder)
        assert scorer.id == f"clip_score/toyworld@{scorer.revision}"
        assert describe_clip("toyworld", "sd-1.5", HERE) == scorer

    def test_others_are_judged_by_torchmetrics_default(self, hub: Hub, clip_folder: Path) -> None:
        hub.add(DEFAULT_CLIP, clip_folder)
        for model in ("sd-1.5", "owner/name", "./folder"):
            scorer = describe_clip(None, model, HERE)
            assert (scorer.location, scorer.revision) == (DEFAULT_CLIP, COMMIT)
            assert scorer.id == f"clip_score/clip-vit-large-patch14@{COMMIT}"

    def test_one_may_be_asked_for(self, hub: Hub, clip_folder: Path) -> None:
        hub.add("owner/my-clip", clip_folder, OLDER, ref="v1")
        scorer = describe_clip("owner/my-clip@v1", "toyworld", HERE)
        assert scorer.id == f"clip_score/my-clip@{OLDER}"
        folder = describe_clip(clip_folder.name, "toyworld", clip_folder.parent)
        assert folder.location == str(clip_folder)
        assert folder.revision == folder_hash(clip_folder)

    def test_what_is_no_clip_is_refused(self, tmp_path: Path, tiny_sd: Path) -> None:
        with refusal("clip_model", str(tiny_sd), "no config.json"):
            describe_clip(str(tiny_sd), "toyworld", HERE)
        with refusal("clip_model", "not a CLIP model"):
            describe_clip(str(tiny_sd / "unet"), "toyworld", HERE)
        with refusal("clip_model: unknown model 'toywrld'", "did you mean 'toyworld'?"):
            describe_clip("toywrld", "toyworld", HERE)
        with refusal("clip_model", DEFAULT_CLIP, "not on this machine"):
            describe_clip(None, "sd-1.5", tmp_path)


class TestLoad:
    def test_the_bundled_folders_load_like_any_other(self, clip_folder: Path) -> None:
        pipeline = diffusers.AutoPipelineForInpainting.from_pretrained(TOYWORLD)
        assert type(pipeline).__name__ == "StableDiffusionInpaintPipeline"
        assert CLIPModel.from_pretrained(clip_folder).config.model_type == "clip"
        assert CLIPProcessor.from_pretrained(clip_folder).tokenizer.model_max_length == 77

    def test_weights_have_the_studys_dtype(self, toyworld: ModelDescription) -> None:
        for dtype in ("float32", "bfloat16"):
            pipeline = load_pipeline(toyworld.model_copy(update={"dtype": dtype}), "cpu")
            for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
                assert {weight.dtype for weight in part.parameters()} == {getattr(torch, dtype)}

    def test_another_version_of_diffusers_is_refused(self, toyworld: ModelDescription) -> None:
        with refusal("0.1.0", diffusers.__version__):
            load_pipeline(toyworld.model_copy(update={"diffusers": "0.1.0"}), "cpu")

    @pytest.mark.parametrize(
        "name", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]
    )
    @pytest.mark.parametrize("kept", [0, 100, 0.5])
    def test_missing_and_broken_weights_are_refused(self, copied: Path, name: str, kept: float) -> None:
        model, path = described(copied), copied / name
        whole = path.read_bytes()
        if kept:
            path.write_bytes(whole[: int(kept if kept > 1 else kept * len(whole))])
        else:
            path.unlink()
        with refusal("model: ", str(copied), "cannot be loaded"):
            load_pipeline(model, "cpu")

    def test_a_folder_that_went_away_is_refused(self, copied: Path) -> None:
        model = described(copied)
        shutil.rmtree(copied)
        with refusal("model: ", str(copied), "cannot be loaded"):
            load_pipeline(model, "cpu")


class TestOnAGpu:
    """Of which these tests have none: its memory is told, and what would move there stays."""

    @pytest.fixture(autouse=True)
    def memory(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Bytes that are free."""
        free = [10**9]
        gpu = SimpleNamespace(total_memory=8 * 10**10, name="a GPU")
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free[0], gpu.total_memory))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
        return free

    def test_what_does_not_fit_is_refused_with_both_sizes(
        self, toyworld: ModelDescription, memory: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What had been moved when memory ran out is not free, but was."""
        memory[0] = 300_000_000

        def moves_some(*_: Any, **__: Any) -> None:
            memory[0] = 0
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(diffusers.StableDiffusionInpaintPipeline, "to", moves_some)
        with refusal("toyworld takes 0.0 GB in float32", "has 0.3 GB free", "offload: model"):
            load_pipeline(toyworld, "cuda")

    def test_a_part_that_does_not_fit_alone_is_refused_with_both_sizes(
        self, toyworld: ModelDescription, memory: list[int]
    ) -> None:
        memory[0] = 10_000_000
        with refusal("the unet of toyworld alone takes 0.0 GB", "has 0.0 GB free", "offload: sequential"):
            load_pipeline(toyworld, "cuda", "model")

    @pytest.mark.parametrize("offload", ["model", "sequential"])
    def test_offloading_is_accelerates(
        self, toyworld: ModelDescription, offload: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[tuple[str, str]] = []
        for kind in ("model", "sequential"):
            monkeypatch.setattr(
                diffusers.DiffusionPipeline,
                f"enable_{kind}_cpu_offload",
                lambda _, device, kind=kind: asked.append((kind, device)),
            )
        load_pipeline(toyworld, "cuda", offload)
        assert asked == [(offload, "cuda")]


def test_without_a_compiler_compiling_is_refused() -> None:
    missing = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with missing, refusal("engine.compile: ", "no-such-compiler", "such as g++", "compile: false"):
        check_compiler("cpu")


class TestTrust:
    """What could run code is loaded only where the study file asks for it by name."""

    @pytest.fixture
    def pickled(self, tmp_path: Path, toyworld_pipeline: Any) -> Path:
        folder = tmp_path / "pickled"
        toyworld_pipeline.save_pretrained(folder, safe_serialization=False)
        assert not list((folder / "unet").glob("*.safetensors"))
        return folder

    def test_pickles_are_refused(self, pickled: Path) -> None:
        with refusal("model: ", str(pickled), "only safetensors are loaded", "`trust: [pickles]`"):
            load_pipeline(described(pickled), "cpu")

    def test_pickles_are_read_where_the_study_file_says_so(self, pickled: Path) -> None:
        model = describe(str(pickled), None, "float32", HERE, trust=["pickles"])
        assert load_pipeline(model, "cpu").unet.config.in_channels == 9

    @pytest.fixture
    def with_code(self, copied: Path) -> Path:
        """A model whose UNet is a class of a module of its own, which leaves a file when it runs."""
        index = json.loads((copied / "model_index.json").read_text())
        (copied / "model_index.json").write_text(
            json.dumps({**index, "unet": ["mine", "UNet2DConditionModel"]})
        )
        (copied / "unet" / "mine.py").write_text(
            "import pathlib\nfrom diffusers import UNet2DConditionModel\n"
            f"pathlib.Path({str(copied / 'ran')!r}).touch()\n"
        )
        return copied

    def test_a_models_own_code_is_not_run(self, with_code: Path) -> None:
        with refusal("model: ", str(with_code), "`trust: [remote_code]`"):
            load_pipeline(described(with_code), "cpu")
        assert not (with_code / "ran").exists()

    def test_a_models_own_code_is_run_where_the_study_file_says_so(
        self, with_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
        )
        model = describe(str(with_code), None, "float32", HERE, trust=["remote_code"])
        assert load_pipeline(model, "cpu").unet.config.in_channels == 9
        assert (with_code / "ran").exists()

    @pytest.mark.parametrize("trust", [(), ("pickles",)])
    def test_the_scorer_too(self, tmp_path: Path, clip_folder: Path, trust: tuple[Any, ...]) -> None:
        folder = tmp_path / "clip"
        shutil.copytree(clip_folder, folder)
        (weights,) = folder.glob("*.safetensors")
        torch.save(load_file(weights), folder / "pytorch_model.bin")
        weights.unlink()
        scorer = describe_clip(str(folder), "toyworld", HERE, trust)
        if trust:
            load_scorer(scorer, "cpu")
        else:
            with refusal("clip_model: ", "only safetensors are loaded"):
                load_scorer(scorer, "cpu")


def test_a_gpu_that_is_too_small_is_named_with_both_sizes(toyworld: ModelDescription) -> None:
    gpu = SimpleNamespace(total_memory=8_000_000_000, name="Small GPU")
    _refuse_too_large(7.9, gpu, toyworld)
    with refusal("model: toyworld takes 8.1 GB in float32", "(Small GPU) has 8.0 GB"):
        _refuse_too_large(8.1, gpu, toyworld)


@pytest.fixture(scope="module")
def image_to_image(tiny_sd: Path) -> tuple[ModelDescription, Any]:
    model = described(tiny_sd, "image-to-image")
    return model, load_pipeline(model, "cpu")


class TestUnetCalls:
    """Equal to the forward passes of real calls."""

    @pytest.mark.parametrize(
        "scheduler",
        [
            "DDIMScheduler",
            "EulerDiscreteScheduler",
            "PNDMScheduler",
            "HeunDiscreteScheduler",
            "KDPM2DiscreteScheduler",
            "DPMSolverMultistepScheduler",
            "LCMScheduler",
            "UniPCMultistepScheduler",
        ],
    )
    def test_at_several_steps_and_strengths(
        self, image_to_image: tuple[ModelDescription, Any], scheduler: str, cat: tuple[Any, Any]
    ) -> None:
        model, pipeline = image_to_image
        image, tried = cat[0].resize((16, 16)), 0
        for steps in (1, 4, 5, 9):
            for strength in (0.21, 0.5, 0.8, 1.0):
                settings = complete(model, scheduler=scheduler, num_inference_steps=steps, strength=strength)
                expected = unet_calls(model, settings)
                if effective_steps(settings, model) == 0 or (scheduler == "PNDMScheduler" and steps < 4):
                    continue
                assert (
                    counted(pipeline, scheduler, image=image, num_inference_steps=steps, strength=strength)
                    == expected
                )
                tried += 1
        assert tried >= 10

    def test_with_every_scheduler_that_is_offered(
        self, toyworld: ModelDescription, toyworld_pipeline: Any, cat: tuple[Any, Any]
    ) -> None:
        own = toyworld_pipeline.scheduler
        try:
            for scheduler in toyworld.schedulers:
                expected = unet_calls(
                    toyworld, complete(toyworld, scheduler=scheduler, num_inference_steps=5)
                )
                found = counted(
                    toyworld_pipeline, scheduler, image=cat[0], mask_image=cat[1], num_inference_steps=5
                )
                assert found == expected, scheduler
        finally:
            toyworld_pipeline.scheduler = own

    def test_with_pndm_as_stable_diffusion_ships_it(self, tiny_sd: Path, tmp_path: Path) -> None:
        """Without Runge-Kutta steps: one call more than steps."""
        shutil.copytree(tiny_sd, tmp_path / "sd")
        rewrite(tmp_path / "sd" / "scheduler" / "scheduler_config.json", skip_prk_steps=True)
        model = described(tmp_path / "sd")
        pipeline = load_pipeline(model, "cpu")
        for steps in (1, 2, 5):
            settings = complete(model, scheduler="PNDMScheduler", num_inference_steps=steps)
            assert (
                unet_calls(model, settings)
                == counted(pipeline, "PNDMScheduler", num_inference_steps=steps)
                == (steps + 1 if steps > 1 else 1)
            )

    def test_steps_that_a_scheduler_refuses_are_not_known(self, toyworld: ModelDescription) -> None:
        for scheduler, steps in (("LCMScheduler", 60), ("PNDMScheduler", 3)):
            assert (
                unet_calls(toyworld, complete(toyworld, scheduler=scheduler, num_inference_steps=steps))
                is None
            )

    def test_no_effective_step_is_no_call(self, toyworld: ModelDescription) -> None:
        settings = complete(toyworld, num_inference_steps=3, strength=0.1)
        assert unet_calls(toyworld, settings) == 0

    @pytest.mark.parametrize("part", ["denoising_start", "denoising_end"])
    def test_half_a_denoising_is_not_known(self, tiny_sdxl: Path, part: str) -> None:
        model = described(tiny_sdxl, "image-to-image")
        assert unet_calls(model, complete(model)) is not None
        assert unet_calls(model, complete(model, **{part: 0.5})) is None


def counted(pipeline: Any, scheduler: str, **arguments: Value | Any) -> int:
    """Forward passes of the UNet in one plain call."""
    passes: list[int] = []
    handle = pipeline.unet.register_forward_pre_hook(lambda *_: passes.append(1))
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
    try:
        pipeline("a cat", guidance_scale=3.0, **arguments)
    finally:
        handle.remove()
    return len(passes)


def test_a_model_folder_whose_path_is_no_text_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "m\udce9"
    (folder / "model").mkdir(parents=True)
    with refusal("model: ", r"m\xe9/model has bytes that are no UTF-8"):
        describe("./model", None, "float32", folder)
